//! Small charts as SVG, drawn here: the browser needs nothing but a stylesheet.

use std::fmt::Write;

const WIDTH: f32 = 300.0;
const HEIGHT: f32 = 64.0;
/// Room for the stroke above the curve and below it.
const EDGE: f32 = 1.0;

/// A number as short as people read it.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() => "–".into(),
        v if v >= 1e6 => format!("{:.1}M", value / 1e6),
        v if v >= 1e4 => format!("{:.0}k", value / 1e3),
        v if v >= 1e3 => format!("{:.1}k", value / 1e3),
        v if v >= 10.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 0.1 => format!("{value:.1}"),
        v if v < 1e-9 => "0".into(),
        // As many places as its first digit needs: a code in five minutes is not none.
        v => {
            let places = (-v.log10()).ceil().max(2.0) as usize;
            format!("{value:.places$}")
        }
    }
}

/// A chart, and what to write beneath it.
pub struct Drawn {
    /// The chart.
    pub svg: String,
    /// What the top of the chart means. Not within the picture: there it would shrink with it.
    pub most: String,
}

/// A curve over `points`, the oldest first; a gap where one is not a number. `title` and `unit` are
/// words of ours.
pub fn draw(title: &str, unit: &str, points: &[f32]) -> Drawn {
    let known = points.iter().copied().filter(|point| point.is_finite());
    let (now, max) = (known.clone().next_back(), known.fold(0.0_f32, f32::max));
    let top = if max > 0.0 { max } else { 1.0 };
    let step = WIDTH / (points.len().max(2) - 1) as f32;
    let place = |index: usize, value: f32| {
        (index as f32 * step, HEIGHT - EDGE - value / top * (HEIGHT - 2.0 * EDGE))
    };
    let (mut line, mut area, mut begun): (String, String, Option<f32>) = Default::default();
    let mut last = 0.0;
    for (index, value) in points.iter().enumerate() {
        if !value.is_finite() {
            close(&mut area, begun.take(), last);
            continue;
        }
        let (x, y) = place(index, *value);
        let command = if begun.is_some() { 'L' } else { 'M' };
        // Writing to a string cannot fail.
        let _ = write!(line, "{command}{x:.1} {y:.1}");
        if begun.is_none() {
            let _ = write!(area, "M{x:.1} {HEIGHT}");
            begun = Some(x);
        }
        let is_alone = points.get(index + 1).is_none_or(|next| !next.is_finite());
        if command == 'M' && is_alone {
            // Without an extent, a round end makes it a dot.
            line.push_str("h0");
        }
        let _ = write!(area, "L{x:.1} {y:.1}");
        last = x;
    }
    close(&mut area, begun, last);
    let most = match now {
        Some(_) => format!("max. {}{unit}", short(max.into())),
        None => "no data yet".to_owned(),
    };
    let said = match now {
        Some(now) => format!("{title}: now {}{unit}, {most}", short(now.into())),
        None => format!("{title}: {most}"),
    };
    let svg = format!(
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{said}\">\
         <path class=\"base\" d=\"M0 {HEIGHT}H{WIDTH}\"/>\
         <path class=\"area\" d=\"{area}\"/><path class=\"line\" d=\"{line}\"/></svg>"
    );
    Drawn { svg, most }
}

fn close(area: &mut String, begun: Option<f32>, last: f32) {
    if begun.is_some() {
        let _ = write!(area, "L{last:.1} {HEIGHT}Z");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_never_lie_about_their_size() {
        let said = [(0.0, "0"), (0.04, "0.04"), (0.25, "0.2"), (9.4, "9.4"), (42.0, "42")];
        let more = [(1_500.0, "1.5k"), (28_400.0, "28k"), (3_200_000.0, "3.2M"), (f64::NAN, "–")];
        // One code in five minutes, which is what a point of the day may hold.
        let few = [(1.0 / 300.0, "0.003"), (0.000_28, "0.0003"), (0.01, "0.01"), (1e-300, "0")];
        for (value, words) in said.into_iter().chain(more).chain(few) {
            assert_eq!(short(value), words);
        }
    }

    #[test]
    fn a_chart_says_its_figures_and_leaves_gaps_open() {
        let Drawn { svg, most } = draw("Requests", "/s", &[1.0, 2.0, f32::NAN, 4.0, 3.0]);
        assert_eq!(most, "max. 4.0/s");
        assert!(svg.contains("aria-label=\"Requests: now 3.0/s, max. 4.0/s\""), "{svg}");
        let line = svg.split("class=\"line\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(line.matches('M').count(), 2, "{line}");
        assert!(!svg.contains("style=") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        for points in [&[][..], &[f32::NAN], &[f32::NAN, f32::NAN]] {
            let Drawn { svg, most } = draw("Requests", "/s", points);
            assert_eq!(most, "no data yet");
            assert!(svg.contains("no data yet") && !svg.contains("NaN"), "{svg}");
        }
        assert!(draw("Zero", "", &[0.0, 0.0]).svg.contains("now 0, max. 0"));
    }
}
