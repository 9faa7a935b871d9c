//! `vm.ft-metrics`: the numbers of [`FtInfo`] in Prometheus's text format, version 0.0.4.
//!
//! What they mean is said at [`FtInfo`]; only names, units and the format are here.

use std::fmt::{Display, Write};

use super::{FtInfo, FtState};

/// The text for one scrape. Counters start anew with each protection, as Prometheus expects of a
/// process that was started anew.
pub(super) fn exposition(info: &FtInfo) -> String {
    let mut text = Exposition::default();
    about(&mut text, info);
    log(&mut text, info);
    outputs(&mut text, info);
    differences(&mut text, info);
    text.0
}

/// Text in the making.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    /// Begins a metric; its samples follow.
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (label, of)) in labels.iter().enumerate() {
            let open = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{open}{label}=\"{}\"", escaped(of));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }

    /// A metric with one sample and no labels.
    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.metric(name, kind, help);
        self.sample(name, &[], value);
    }
}

/// A label's value: no quote, backslash or end of line may end it early.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}

fn about(text: &mut Exposition, info: &FtInfo) {
    let name = "vmm_ft_info";
    text.metric(name, "gauge", "Always 1; the labels say how the VM is protected.");
    let labels = [
        ("role", info.role.map_or("none", |role| role.name())),
        ("mode", info.mode.name()),
        ("ack", info.ack.name()),
        ("peer", info.peer.as_deref().unwrap_or_default()),
    ];
    text.sample(name, &labels, 1);
    let name = "vmm_ft_state";
    text.metric(name, "gauge", "1 for the state this side is in, 0 for the others.");
    for state in FtState::ALL {
        text.sample(name, &[("state", state.name())], u8::from(state == info.state));
    }
    let help = "The pair's number; whoever goes on after a loss does so in the next one.";
    text.single("vmm_ft_generation", "gauge", help, info.generation);
    let help = "Logical time: deterministic exits of the VM since it booted.";
    text.single("vmm_ft_moments_total", "counter", help, info.moment);
    let help = "Logical time up to where the backup has acknowledged the log.";
    text.single("vmm_ft_acknowledged_moments_total", "counter", help, info.acknowledged_moment);
    let help = "How far the backup's execution is behind.";
    text.single("vmm_ft_lag_seconds", "gauge", help, seconds(info.lag_ms));
    let help = "Percent of its time that the guest rests because the backup is slower.";
    text.single("vmm_ft_slowdown_percent", "gauge", help, info.slowdown_percent);
}

fn log(text: &mut Exposition, info: &FtInfo) {
    let name = "vmm_ft_log_bytes_total";
    let help = "Log since the protection began, by kind of record.";
    text.metric(name, "counter", help);
    for (kind, bytes) in &info.log.bytes_by_kind {
        text.sample(name, &[("kind", kind)], bytes);
    }
    let help =
        "Bytes of the stream between the two, packed if they are: sent, or at the backup received.";
    text.single("vmm_ft_wire_bytes_total", "counter", help, info.wire_bytes);
}

fn outputs(text: &mut Exposition, info: &FtInfo) {
    let help = "Outputs that wait for an acknowledgement now.";
    text.single("vmm_ft_outputs_held", "gauge", help, info.outputs_held);
    let name = "vmm_ft_output_delay_seconds";
    let help = "How long outputs have waited since the protection began, by quantile.";
    text.metric(name, "gauge", help);
    let delay = info.output_delay_us;
    for (quantile, us) in [("0.5", delay.p50), ("0.99", delay.p99)] {
        text.sample(name, &[("quantile", quantile)], us as f64 / 1e6);
    }
}

fn differences(text: &mut Exposition, info: &FtInfo) {
    let help = "Times the state was shipped because the guest did not exit by itself.";
    text.single("vmm_ft_deltas_total", "counter", help, info.deltas);
    let help = "Pages of 4 KiB shipped with deltas.";
    text.single("vmm_ft_delta_pages_total", "counter", help, info.delta_pages);
    let help = "Times the copies differed since the VMM started.";
    text.single("vmm_ft_divergences_total", "counter", help, info.divergences);
    let help = "Times a copy that differed was made equal again without ending the protection.";
    text.single("vmm_ft_healings_total", "counter", help, info.healings);
    if let Some(event) = &info.last_event {
        let help = "When something happened to the pair last, by this host's clock.";
        let when = seconds(event.when_unix_ms);
        text.single("vmm_ft_last_event_timestamp_seconds", "gauge", help, when);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FtEvent, FtProtection, FtRole, LogTraffic, OutputDelayUs};
    use super::*;

    fn info() -> FtInfo {
        FtInfo {
            state: FtState::Protected,
            role: Some(FtRole::Primary),
            generation: 3,
            mode: FtProtection::Replay,
            peer: Some("b\"\\\n:7000".into()),
            moment: 1_234_567,
            acknowledged_moment: 1_234_560,
            lag_ms: 12,
            slowdown_percent: 6,
            log: LogTraffic {
                bytes: 5_000,
                bytes_by_kind: [("packet".into(), 4_000), ("tick".into(), 1_000)].into(),
                ..LogTraffic::default()
            },
            wire_bytes: 3_210,
            outputs_held: 2,
            output_delay_us: OutputDelayUs { p50: 412, p99: 1_300_000 },
            deltas: 4,
            delta_pages: 90,
            divergences: 0,
            last_event: Some(FtEvent { when_unix_ms: 1_700_000_000_250, ..FtEvent::default() }),
            ..FtInfo::default()
        }
    }

    #[test]
    fn a_protected_vm_in_prometheus_words() {
        assert_eq!(exposition(&info()), include_str!("ft_metrics_golden.txt"));
    }

    #[test]
    fn every_line_is_one_that_prometheus_reads() {
        let name = |text: &str| {
            let mut letters = text.chars();
            letters.next().is_some_and(|first| first.is_ascii_lowercase())
                && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
        };
        for info in [FtInfo::default(), info()] {
            let text = exposition(&info);
            assert!(text.ends_with('\n'));
            for line in text.lines() {
                let Some(comment) = line.strip_prefix("# ") else {
                    let (series, value) = line.rsplit_once(' ').unwrap();
                    assert!(name(series.split('{').next().unwrap()), "{line}");
                    assert!(value.parse::<f64>().unwrap().is_finite(), "{line}");
                    continue;
                };
                let mut words = comment.splitn(3, ' ');
                assert!(["HELP", "TYPE"].contains(&words.next().unwrap()), "{line}");
                assert!(name(words.next().unwrap()), "{line}");
                assert!(!words.next().unwrap().is_empty(), "{line}");
            }
        }
    }
}
