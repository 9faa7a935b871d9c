//! A picture of the round trips over time: one dot a request, on a logarithmic scale.
//!
//! Owns the drawing, as SVG. Knows nothing of VMs: phases, marks and points come from whoever draws.

use std::collections::BTreeSet;
use std::fmt::Write;

/// What is drawn.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// The headline.
    pub title: String,
    /// A line below it.
    pub subtitle: String,
    /// A line at the bottom.
    pub footer: String,
    /// Points: time in ms, round trip in ms.
    pub points: Vec<(f64, f64)>,
    /// Spans of time, side by side.
    pub phases: Vec<Phase>,
    /// Moments to be pointed out.
    pub marks: Vec<Mark>,
    /// A span without any answer: its start and end, in ms.
    pub gap: Option<(f64, f64)>,
    /// Where time ends, in ms.
    pub end_ms: f64,
}

/// A span of time with a name and a colour.
#[derive(Clone, Debug)]
pub struct Phase {
    /// What it is called; a span that is too narrow for its name stays without.
    pub name: String,
    /// Its colour.
    pub colour: &'static str,
    /// From when, in ms.
    pub start_ms: f64,
    /// To when, in ms.
    pub end_ms: f64,
}

/// A moment.
#[derive(Clone, Debug)]
pub struct Mark {
    /// What happened.
    pub name: String,
    /// When, in ms.
    pub at_ms: f64,
    /// Its colour.
    pub colour: &'static str,
}

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 470.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 976.0;
const TOP: f64 = 112.0;
const BOTTOM: f64 = 390.0;
const STYLE: &str = "font-family=\"system-ui, 'DejaVu Sans', Helvetica, Arial, sans-serif\"";
/// Width of a letter at the size of the phases' names, about.
const LETTER: f64 = 6.6;

impl Chart {
    /// The picture.
    pub fn to_svg(&self) -> String {
        let scale = self.scale();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             width=\"{WIDTH}\" height=\"{HEIGHT}\" {STYLE}>\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
        );
        text(&mut svg, (LEFT, 32.0), "start", (19, "#111827", "bold"), &self.title);
        text(&mut svg, (LEFT, 54.0), "start", (13, "#4b5563", "normal"), &self.subtitle);
        text(&mut svg, (LEFT, HEIGHT - 14.0), "start", (11, "#6b7280", "normal"), &self.footer);
        self.draw_phases(&mut svg, &scale);
        draw_axes(&mut svg, &scale);
        self.draw_points(&mut svg, &scale);
        self.draw_gap(&mut svg, &scale);
        self.draw_marks(&mut svg, &scale);
        svg.push_str("</svg>\n");
        svg
    }

    fn scale(&self) -> Scale {
        let least = self.points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
        let most = self.points.iter().map(|point| point.1).fold(0.0, f64::max);
        // Whole decades, at least two of them; nothing under 10 µs can be told apart from nothing.
        let floor = if least.is_finite() { least.max(0.01).log10().floor() } else { 0.0 };
        let ceiling = most.max(0.01).log10().ceil().max(floor + 2.0);
        Scale { end_ms: self.end_ms.max(1.0), floor, ceiling }
    }

    fn draw_phases(&self, svg: &mut String, scale: &Scale) {
        for phase in &self.phases {
            let (left, right) = (scale.x(phase.start_ms), scale.x(phase.end_ms));
            let _ = writeln!(
                svg,
                "<rect x=\"{left:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>",
                right - left,
                BOTTOM - TOP,
                phase.colour
            );
            let place = ((left + right) / 2.0, TOP - 8.0);
            if phase.name.chars().count() as f64 * LETTER < right - left {
                text(svg, place, "middle", (12, "#374151", "bold"), &phase.name);
            }
        }
    }

    fn draw_points(&self, svg: &mut String, scale: &Scale) {
        // Dots in the same place are one: a long run makes no larger picture.
        let places: BTreeSet<(i64, i64)> = self
            .points
            .iter()
            .map(|(at_ms, ms)| (halves(scale.x(*at_ms)), halves(scale.y(*ms))))
            .collect();
        svg.push_str("<g fill=\"#1d4ed8\" fill-opacity=\"0.55\">\n");
        for (x, y) in places {
            let (x, y) = (x as f64 / 2.0, y as f64 / 2.0);
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"1.7\"/>");
        }
        svg.push_str("</g>\n");
    }

    fn draw_gap(&self, svg: &mut String, scale: &Scale) {
        let Some((start_ms, end_ms)) = self.gap else { return };
        let length_ms = end_ms - start_ms;
        let (left, right, y) = (scale.x(start_ms), scale.x(end_ms), scale.y(length_ms));
        let _ = writeln!(
            svg,
            "<path d=\"M{left:.1} {0:.1} V{1:.1} M{left:.1} {y:.1} H{right:.1} M{right:.1} {0:.1} V{1:.1}\" \
             stroke=\"#b91c1c\" stroke-width=\"1.8\" fill=\"none\"/>",
            y - 5.0,
            y + 5.0
        );
        let name = format!("{length_ms:.0} ms without an answer");
        let width = name.chars().count() as f64 * LETTER;
        // On whichever side there is room for it.
        let (x, anchor) =
            if right + width < RIGHT - 8.0 { (right + 8.0, "start") } else { (left - 8.0, "end") };
        text(svg, (x, y + 4.0), anchor, (12, "#b91c1c", "bold"), &name);
    }

    fn draw_marks(&self, svg: &mut String, scale: &Scale) {
        for (index, mark) in self.marks.iter().enumerate() {
            let x = scale.x(mark.at_ms);
            // Names of marks close to each other stand on lines of their own.
            let y = TOP + 16.0 + 16.0 * (index % 3) as f64;
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{BOTTOM}\" stroke=\"{}\" \
                 stroke-width=\"1.4\" stroke-dasharray=\"5 3\"/>",
                mark.colour
            );
            let width = mark.name.chars().count() as f64 * LETTER;
            let (x, anchor) =
                if x + width < RIGHT - 6.0 { (x + 6.0, "start") } else { (x - 6.0, "end") };
            let halo = " stroke=\"#ffffff\" stroke-width=\"3\" paint-order=\"stroke\"";
            haloed(svg, (x, y), anchor, (12, mark.colour, "bold"), &mark.name, halo);
        }
    }
}

/// From times and round trips to places in the picture.
struct Scale {
    end_ms: f64,
    /// Powers of ten, in ms.
    floor: f64,
    ceiling: f64,
}

impl Scale {
    fn x(&self, ms: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * (ms / self.end_ms).clamp(0.0, 1.0)
    }

    fn y(&self, ms: f64) -> f64 {
        let part = (ms.max(0.001).log10() - self.floor) / (self.ceiling - self.floor);
        BOTTOM - (BOTTOM - TOP) * part.clamp(0.0, 1.0)
    }
}

fn draw_axes(svg: &mut String, scale: &Scale) {
    let line = |svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str| {
        let _ = writeln!(
            svg,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
        );
    };
    for power in scale.floor as i32..=scale.ceiling as i32 {
        let ms = 10_f64.powi(power);
        let y = scale.y(ms);
        line(svg, (LEFT, y), (RIGHT, y), "#d1d5db");
        text(svg, (LEFT - 8.0, y + 4.0), "end", (12, "#374151", "normal"), &duration(ms));
    }
    let seconds = scale.end_ms / 1000.0;
    let step = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0]
        .into_iter()
        .find(|step| seconds / step <= 12.0)
        .unwrap_or(1800.0);
    for tick in 0..=(seconds / step) as u32 {
        let at = f64::from(tick) * step;
        let x = scale.x(at * 1000.0);
        line(svg, (x, BOTTOM), (x, BOTTOM + 5.0), "#374151");
        let name = if step < 1.0 { format!("{at:.1}") } else { format!("{at:.0}") };
        text(svg, (x, BOTTOM + 20.0), "middle", (12, "#374151", "normal"), &name);
    }
    line(svg, (LEFT, BOTTOM), (RIGHT, BOTTOM), "#374151");
    line(svg, (LEFT, TOP), (LEFT, BOTTOM), "#374151");
    let middle = (LEFT + RIGHT) / 2.0;
    let style = (12, "#374151", "normal");
    text(svg, (middle, BOTTOM + 40.0), "middle", style, "time, seconds since the client connected");
    let middle = (TOP + BOTTOM) / 2.0;
    let turned = format!(" transform=\"rotate(-90 18 {middle:.0})\"");
    haloed(svg, (18.0, middle), "middle", style, "round trip of a request", &turned);
}

fn duration(ms: f64) -> String {
    if ms < 0.99 {
        format!("{:.0} µs", ms * 1000.0)
    } else if ms < 999.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.0} s", ms / 1000.0)
    }
}

type Lettering = (u32, &'static str, &'static str);

fn text(svg: &mut String, place: (f64, f64), anchor: &str, lettering: Lettering, content: &str) {
    haloed(svg, place, anchor, lettering, content, "");
}

fn haloed(
    svg: &mut String,
    (x, y): (f64, f64),
    anchor: &str,
    (size, colour, weight): Lettering,
    content: &str,
    more: &str,
) {
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" \
         font-weight=\"{weight}\" fill=\"{colour}\"{more}>{}</text>",
        escaped(content)
    );
}

fn escaped(content: &str) -> String {
    content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn halves(number: f64) -> i64 {
    (number * 2.0).round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        Chart {
            title: "Title <&>".to_owned(),
            points,
            gap: Some((500.0, 900.0)),
            marks: vec![Mark { name: "killed".to_owned(), at_ms: 500.0, colour: "#b91c1c" }],
            end_ms: 2_000.0,
            ..Chart::default()
        }
    }

    #[test]
    fn a_picture_has_what_was_drawn_and_is_well_formed() {
        let svg = chart(vec![(0.0, 1.0), (1_000.0, 2.0), (900.0, 400.0)]).to_svg();
        assert_eq!(svg.matches("<circle").count(), 3);
        for words in ["Title &lt;&amp;&gt;", "killed", "400 ms without an answer", "100 ms", "1 s"]
        {
            assert!(svg.contains(words), "{words}");
        }
        let opened = svg.matches("<text").count();
        assert_eq!(opened, svg.matches("</text>").count());
        assert!(svg.ends_with("</svg>\n"));
    }

    #[test]
    fn a_long_run_makes_no_large_picture_and_an_empty_one_makes_a_picture() {
        let many = (0..200_000).map(|n| (f64::from(n) / 100.0, 1.0 + f64::from(n % 7) / 100.0));
        let svg = chart(many.collect()).to_svg();
        assert!(svg.len() < 1 << 20, "{}", svg.len());
        let empty = chart(Vec::new()).to_svg();
        assert!(!empty.contains("NaN") && !empty.contains("inf"), "{empty}");
    }
}
