//! Tests of `ft_fields.rs`: every rule of `--ft` and the sentence that tells of it.

use super::*;

const PRIMARY: &str = "role=primary,peer=backup:7000,arbiter=file:/shared/vm";

fn parse(text: &str) -> FtConfig {
    FtConfig::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn sentence(text: &str) -> String {
    FtConfig::parse(text).expect_err(text).to_string()
}

fn json_sentence(json: &str) -> String {
    serde_json::from_str::<FtConfig>(json).expect_err(json).to_string()
}

#[test]
fn a_primary_has_every_default_but_the_arbiter() {
    let config = parse(PRIMARY);
    let peer = PeerAddress { host: "backup".into(), port: 7000 };
    assert_eq!(config.mode, FtMode::Primary { peer, listen: None });
    assert_eq!(config.arbiter, Some(Arbiter::File { path: "/shared/vm".into() }));
    assert_eq!(config.ack, AckMode::Received);
    assert_eq!(config.log_buffer, 64 << 20);
    let FtTimings { heartbeat_ms, timeout_ms, connect_timeout_ms, max_lag_ms, checkpoint_ms } =
        config.timings;
    assert_eq!((heartbeat_ms, timeout_ms, connect_timeout_ms, max_lag_ms), (50, 500, 5000, 100));
    assert_eq!((config.method, checkpoint_ms), (FtMethod::Auto, 25));
    assert_eq!(config.udp_port, None);
    assert!(config.is_source());
}

#[test]
fn everything_a_primary_may_say_is_read() {
    let config = parse(
        "role=primary,peer=[fd00::2]:7000,ack=verified,arbiter=none,heartbeat_ms=20,\
         timeout_ms=80,connect_timeout_ms=100,max_lag_ms=7,log_buffer=1G,digest_every=3,\
         udp_port=7001",
    );
    assert_eq!(config.ack, AckMode::Verified);
    assert_eq!(config.arbiter, Some(Arbiter::None));
    assert_eq!(config.timings.timeout_ms, 80);
    assert_eq!((config.log_buffer, config.digest_every), (1 << 30, 3));
    assert_eq!(config.udp_port, Some(7001));
}

#[test]
fn a_primary_may_have_standbys_and_wait_as_one_itself() {
    let config = parse(&format!("{PRIMARY},listen=0.0.0.0:7000,standby=b:1,standby=[::1]:2"));
    let listen = "0.0.0.0:7000".parse().unwrap();
    assert_eq!(config.listen(), Some(listen));
    let standbys: Vec<String> = config.standbys.iter().map(ToString::to_string).collect();
    assert_eq!(standbys, ["b:1", "[::1]:2"]);
    assert_eq!(FtConfig::parse(&config.to_options()), Ok(config.clone()));
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<FtConfig>(&json).unwrap(), config);
    assert!(config.reprotect && !parse(&format!("{PRIMARY},reprotect=off")).reprotect);
    assert_eq!(parse(&format!("{PRIMARY},join_bandwidth=100M")).join_bandwidth, Some(100 << 20));
    assert_eq!(
        sentence(&format!("{PRIMARY},standby=b:1,standby=b:1")),
        "--ft: the standby b:1 is named twice."
    );
    assert!(
        sentence(&format!("{PRIMARY},standby=b")).starts_with("--ft: standby=b cannot be read")
    );
    assert!(sentence("role=backup,listen=0.0.0.0:1,standby=b:1").contains("standby="));
    assert!(sentence(&format!("{PRIMARY},join_bandwidth=1K")).contains("join_bandwidth"));
}

#[test]
fn a_primary_may_say_how_its_vm_is_kept_twice() {
    for method in FtMethod::ALL {
        let config = parse(&format!("{PRIMARY},mode={}", method.name()));
        assert_eq!(config.method, method);
        assert_eq!(FtConfig::parse(&config.to_options()), Ok(config.clone()));
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<FtConfig>(&json).unwrap(), config);
    }
    let config = parse(&format!("{PRIMARY},mode=checkpoint,checkpoint_ms=7"));
    assert_eq!((config.method, config.timings.checkpoint_ms), (FtMethod::Checkpoint, 7));
    assert_eq!(parse(&format!("{PRIMARY},checkpoint_ms=10000")).method, FtMethod::Auto);
}

#[test]
fn a_mode_that_cannot_be_is_refused_in_a_sentence() {
    assert_eq!(
        sentence(&format!("{PRIMARY},mode=mirror")),
        "--ft: mode=mirror cannot be read: auto, replay or checkpoint is needed."
    );
    assert_eq!(
        sentence(&format!("{PRIMARY},mode=replay,checkpoint_ms=7")),
        "--ft: mode=replay and checkpoint_ms= contradict each other: no checkpoint is taken then. \
         Leave one of them out."
    );
    for pace in ["0", "10001", "-1", "soon"] {
        let sentence = sentence(&format!("{PRIMARY},checkpoint_ms={pace}"));
        assert!(sentence.contains(&format!("checkpoint_ms={pace} cannot be read")), "{sentence}");
    }
    assert_eq!(
        sentence("role=backup,listen=0.0.0.0:1,mode=checkpoint"),
        "--ft: mode= belongs to role=primary; a backup takes it from its primary; leave it out here \
         (this is a backup)."
    );
    for log in ["record", "replay"] {
        let sentence = sentence(&format!("{log}=run.log,mode=checkpoint"));
        assert!(sentence.contains("mode= belongs to role=primary"), "{sentence}");
        let with_pace = FtConfig::parse(&format!("{log}=run.log,checkpoint_ms=5")).unwrap_err();
        assert!(with_pace.to_string().contains("checkpoint_ms= belongs to role=primary"));
    }
    let sentence = json_sentence(
        r#"{"role":"primary","peer":"b:1","arbiter":"none","mode":"checkpoint","checkpoint_ms":0}"#,
    );
    assert!(sentence.contains("checkpoint_ms=0 cannot be read"), "{sentence}");
}

#[test]
fn a_primary_may_pack_the_stream() {
    assert_eq!(parse(PRIMARY).compression, Compression::Off);
    for compression in Compression::ALL {
        let config = parse(&format!("{PRIMARY},compression={}", compression.name()));
        assert_eq!(config.compression, compression);
        assert_eq!(FtConfig::parse(&config.to_options()), Ok(config.clone()));
        // What a backup is told, and protects by once the VM is its own.
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<FtConfig>(&json).unwrap(), config);
    }
    let json = r#"{"role":"primary","peer":"b:1","arbiter":"none","compression":"lz4"}"#;
    assert_eq!(serde_json::from_str::<FtConfig>(json).unwrap().compression, Compression::Lz4);
    for bad in ["LZ4", "zstd", "on", "lz4:9"] {
        let sentence_of_it = sentence(&format!("{PRIMARY},compression={bad}"));
        let expected = format!("--ft: compression={bad} cannot be read: off or lz4 is needed.");
        assert_eq!(sentence_of_it, expected);
        assert!(json_sentence(&json.replace("lz4", bad)).contains(&expected));
    }
    assert_eq!(
        sentence("role=backup,listen=0.0.0.0:1,compression=lz4"),
        "--ft: compression= belongs to role=primary; a backup takes it from its primary; leave it \
         out here (this is a backup)."
    );
    assert!(sentence("record=run.log,compression=lz4").contains("compression= belongs to"));
}

#[test]
fn a_backup_needs_only_where_to_listen() {
    let config = parse("role=backup,listen=0.0.0.0:7000");
    assert_eq!(config.mode, FtMode::Backup { listen: "0.0.0.0:7000".parse().unwrap() });
    assert_eq!(config.arbiter, None);
    assert!(!config.is_source());
    let config = parse("role=backup,listen=[::]:7000,arbiter=file:/mnt/vm");
    assert_eq!(config.arbiter, Some(Arbiter::File { path: "/mnt/vm".into() }));
}

#[test]
fn recording_and_replaying_take_a_file() {
    assert_eq!(parse("record=/tmp/run.log").mode, FtMode::Record { path: "/tmp/run.log".into() });
    assert_eq!(parse("replay=run.log").mode, FtMode::Replay { path: "run.log".into() });
    assert_eq!(parse("record=run.log,digest_every=10").digest_every, 10);
}

#[test]
fn a_missing_role_is_asked_for() {
    assert_eq!(
        sentence(""),
        "--ft: role= is missing. Say role=primary, role=backup, record=FILE or replay=FILE."
    );
    assert_eq!(
        sentence("role=witness"),
        "--ft: role=witness cannot be read: primary or backup is needed."
    );
}

#[test]
fn a_missing_address_is_asked_for() {
    assert_eq!(
        sentence("role=primary,arbiter=none"),
        "--ft: peer= is missing. A primary needs peer=HOST:PORT, where its backup listens."
    );
    assert_eq!(
        sentence("role=backup"),
        "--ft: listen= is missing. A backup needs listen=ADDRESS:PORT, such as \
         listen=0.0.0.0:7000."
    );
}

#[test]
fn a_missing_arbiter_is_never_guessed() {
    assert_eq!(
        sentence("role=primary,peer=backup:7000"),
        "--ft: arbiter= is missing. Say arbiter=file:PATH with a path on storage both hosts \
         share, or arbiter=etcd:https://HOST:PORT, so that never two VMs live. arbiter=none does \
         without, at your own risk."
    );
}

#[test]
fn an_unreadable_address_is_shown_with_one_that_works() {
    assert_eq!(
        sentence("role=primary,peer=backup,arbiter=none"),
        "--ft: peer=backup cannot be read: HOST:PORT, such as backup.example:7000 or \
         [fd00::2]:7000, is needed."
    );
    for listen in ["7000", "0.0.0.0", "0.0.0.0:0", "localhost:7000"] {
        assert_eq!(
            sentence(&format!("role=backup,listen={listen}")),
            format!(
                "--ft: listen={listen} cannot be read: ADDRESS:PORT, such as 0.0.0.0:7000 or \
                 [::]:7000, is needed."
            )
        );
    }
}

#[test]
fn parts_do_not_mix() {
    assert_eq!(
        sentence("role=backup,listen=0.0.0.0:1,peer=backup:7000"),
        "--ft: role=backup and peer= contradict each other: the backup says with \
         listen=ADDRESS:PORT where it waits, and the primary comes to it."
    );
    assert_eq!(
        sentence("record=a,replay=b"),
        "--ft: record= and replay= contradict each other: a run is either recorded or replayed."
    );
    for (key, text) in [("record", "role=primary,record=a"), ("replay", "role=primary,replay=a")] {
        assert_eq!(
            sentence(text),
            format!(
                "--ft: role=primary and {key}= contradict each other: a VM of a pair logs to its \
                 peer, not to a file."
            )
        );
    }
}

#[test]
fn fields_of_another_part_are_refused_not_ignored() {
    let backup = "role=backup,listen=0.0.0.0:7000";
    for field in [
        "ack=verified",
        "heartbeat_ms=50",
        "timeout_ms=500",
        "connect_timeout_ms=1",
        "max_lag_ms=1",
    ] {
        let key = field.split('=').next().unwrap();
        assert_eq!(
            sentence(&format!("{backup},{field}")),
            format!(
                "--ft: {key}= belongs to role=primary; a backup takes it from its primary; leave \
                 it out here (this is a backup)."
            )
        );
    }
    assert_eq!(
        sentence("record=a,arbiter=none"),
        "--ft: arbiter= belongs to a VM of a pair; leave it out here (this is a recording)."
    );
    assert_eq!(
        sentence("replay=a,log_buffer=64M"),
        "--ft: log_buffer= belongs to a VM that logs or follows a log; leave it out here (this is \
         a replay)."
    );
    assert_eq!(
        sentence(&format!("{backup},digest_every=5")),
        "--ft: digest_every= belongs to role=primary or record=; leave it out here (this is a \
         backup)."
    );
    assert!(sentence("record=a,peer=b:1").contains("peer= belongs to role=primary"));
    assert!(sentence("record=a,listen=0.0.0.0:1").contains("listen= belongs to a VM of a pair"));
    assert!(sentence("record=a,udp_port=1").contains("udp_port= belongs to a VM of a pair"));
}

#[test]
fn an_arbiter_must_mean_the_same_file_on_both_hosts() {
    assert_eq!(
        sentence("role=primary,peer=b:1,arbiter=file:shared/vm"),
        "--ft: arbiter=file:shared/vm is not absolute: both hosts must mean the same file, so the \
         path must start with /."
    );
    for arbiter in ["file:", "maybe", "/shared"] {
        assert_eq!(
            sentence(&format!("role=primary,peer=b:1,arbiter={arbiter}")),
            format!(
                "--ft: arbiter={arbiter} cannot be read: file:PATH, etcd:http://HOST:PORT, \
                 etcd:https://HOST:PORT or none is needed."
            )
        );
    }
}

#[test]
fn an_arbiter_in_etcd_has_fields_of_its_own() {
    let text = "role=primary,peer=b:1,arbiter=etcd:[https://a:1,https://b:1],\
                arbiter_prefix=/vms,arbiter_ca=/c/ca,arbiter_cert=/c/cert,arbiter_key=/c/key";
    let config = parse(text);
    let Some(Arbiter::Etcd(etcd)) = &config.arbiter else { panic!("{config:?}") };
    assert_eq!((etcd.endpoints.len(), etcd.prefix.as_str()), (2, "/vms"));
    let json = r#"{"role":"primary","peer":"b:1","arbiter":"etcd:[https://a:1,https://b:1]",
                   "arbiter_prefix":"/vms","arbiter_ca":"/c/ca","arbiter_cert":"/c/cert",
                   "arbiter_key":"/c/key"}"#;
    assert_eq!(serde_json::from_str::<FtConfig>(json).unwrap(), config);
    for field in ["arbiter_prefix=/a", "arbiter_ca=/a", "arbiter_cert=/a", "arbiter_key=/a"] {
        let key = field.split('=').next().unwrap();
        assert!(
            sentence(&format!("record=a,{field}"))
                .contains(&format!("{key}= belongs to a VM of a pair"))
        );
        assert!(
            sentence(&format!("role=backup,listen=0.0.0.0:1,{field}"))
                .contains(&format!("{key}= belongs to an arbiter in etcd"))
        );
    }
}

#[test]
fn times_that_cannot_work_are_refused() {
    assert_eq!(
        sentence(&format!("{PRIMARY},heartbeat_ms=300")),
        "--ft: timeout_ms=500 is less than four times heartbeat_ms=300: one late heartbeat \
         would count as a dead host. Make the timeout longer or the heartbeats more frequent."
    );
    parse(&format!("{PRIMARY},heartbeat_ms=125"));
    assert_eq!(
        sentence(&format!("{PRIMARY},heartbeat_ms=0")),
        "--ft: heartbeat_ms=0 cannot be read: a number from 1 to 60000 is needed."
    );
    for field in ["timeout_ms=99999999", "connect_timeout_ms=0", "max_lag_ms=0"] {
        assert!(
            sentence(&format!("{PRIMARY},{field}")).contains("a number from 1 to 3600000"),
            "{field}"
        );
    }
    assert_eq!(
        sentence(&format!("{PRIMARY},heartbeat_ms=soon")),
        "--ft: heartbeat_ms=soon cannot be read: a whole number of milliseconds is needed."
    );
}

#[test]
fn sizes_and_counts_have_bounds() {
    for size in ["1K", "65G"] {
        assert!(
            sentence(&format!("{PRIMARY},log_buffer={size}")).contains("log_buffer="),
            "{size}"
        );
    }
    assert_eq!(
        sentence(&format!("{PRIMARY},log_buffer=lots")),
        "--ft: log_buffer=lots cannot be read: a size in bytes such as 512M or 1G is needed."
    );
    assert_eq!(
        sentence(&format!("{PRIMARY},digest_every=0")),
        "--ft: digest_every=0 cannot be read: at least 1 is needed."
    );
    assert_eq!(
        sentence(&format!("{PRIMARY},udp_port=0")),
        "--ft: udp_port=0 cannot be read: a port from 1 to 65535 is needed."
    );
    assert_eq!(
        sentence(&format!("{PRIMARY},ack=soon")),
        "--ft: ack=soon cannot be read: received or verified is needed."
    );
}

#[test]
fn an_unknown_key_is_answered_with_all_there_are() {
    let said = sentence(&format!("{PRIMARY},hartbeat_ms=50"));
    assert!(said.starts_with("--ft: there is no key \"hartbeat_ms\" here."), "{said}");
    assert!(said.contains("heartbeat_ms, timeout_ms"), "{said}");
}

#[test]
fn json_has_the_same_fields_and_the_same_rules() {
    let json = r#"{"role":"primary","peer":"backup:7000","arbiter":"file:/shared/vm",
                   "log_buffer":"64M"}"#;
    assert_eq!(serde_json::from_str::<FtConfig>(json).unwrap(), parse(PRIMARY));
    let json = r#"{"role":"primary","peer":"backup:7000","arbiter":"file:/shared/vm",
                   "log_buffer":67108864}"#;
    assert_eq!(serde_json::from_str::<FtConfig>(json).unwrap(), parse(PRIMARY));
    assert!(json_sentence(r#"{"role":"primary","peer":"b:1"}"#).starts_with("--ft: arbiter="));
    assert!(json_sentence(r#"{"role":"backup","listen":"0.0.0.0:1","pier":1}"#).contains("pier"));
    assert!(json_sentence(r#"{"record":"a","log_buffer":"big"}"#).contains("512M or 1G"));
}
