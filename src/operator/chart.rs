//! Draws small charts as SVG on the server, so that the browser needs only a stylesheet.

use std::fmt::Write;

const WIDTH: f32 = 300.0;
const HEIGHT: f32 = 64.0;
/// The margin for the stroke above and below the curve.
const EDGE: f32 = 1.0;

/// Formats a number with few digits.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() => "–".into(),
        v if v >= 1e6 => format!("{:.1}M", value / 1e6),
        v if v >= 1e4 => format!("{:.0}k", value / 1e3),
        v if v >= 1e3 => format!("{:.1}k", value / 1e3),
        v if v >= 10.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 0.1 => format!("{value:.1}"),
        v if v < 1e-9 => "0".into(),
        // Enough decimals for the first digit, so that one code in five minutes does not show as 0.
        v => {
            let places = (-v.log10()).ceil().max(2.0) as usize;
            format!("{value:.places$}")
        }
    }
}

/// A chart and its caption.
pub struct Drawn {
    /// The chart.
    pub svg: String,
    /// The largest value, as text. It is not part of the SVG, where it would shrink with the
    /// picture.
    pub most: String,
    /// Each value as text, oldest first, separated by spaces; `-` for a gap. A script shows the one below
    /// the pointer.
    pub values: String,
}

/// The vertical lines of a chart, at equal distances: the marks of time below it stand at these.
const MARKS: u8 = 3;

/// Draws a curve over `points`, oldest first, with a gap for each NaN. `title` and `unit` are not
/// escaped, so they must be constants.
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
            // A line of length 0 with round ends shows as a dot.
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
    let label = match now {
        Some(now) => format!("{title}: now {}{unit}, {most}", short(now.into())),
        None => format!("{title}: {most}"),
    };
    let marks: String = (1..MARKS)
        .map(|mark| format!("M{:.1} 0V{HEIGHT}", WIDTH * f32::from(mark) / f32::from(MARKS)))
        .collect();
    let text = |point: &f32| if point.is_finite() { short((*point).into()) } else { "-".into() };
    let values = points.iter().map(text).collect::<Vec<_>>().join(" ");
    let svg = format!(
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">\
         <path class=\"base\" d=\"M0 {HEIGHT}H{WIDTH}{marks}\"/>\
         <path class=\"area\" d=\"{area}\"/><path class=\"line\" d=\"{line}\"/></svg>"
    );
    Drawn { svg, most, values }
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
    fn numbers_are_short_and_keep_their_magnitude() {
        let label = [(0.0, "0"), (0.04, "0.04"), (0.25, "0.2"), (9.4, "9.4"), (42.0, "42")];
        let more = [(1_500.0, "1.5k"), (28_400.0, "28k"), (3_200_000.0, "3.2M"), (f64::NAN, "–")];
        // One code in five minutes, which is what a point of the day may hold.
        let few = [(1.0 / 300.0, "0.003"), (0.000_28, "0.0003"), (0.01, "0.01"), (1e-300, "0")];
        for (value, words) in label.into_iter().chain(more).chain(few) {
            assert_eq!(short(value), words);
        }
    }

    #[test]
    fn a_chart_states_its_figures_and_shows_gaps() {
        let Drawn { svg, most, values } = draw("Requests", "/s", &[1.0, 2.0, f32::NAN, 4.0, 3.0]);
        assert_eq!(values, "1.0 2.0 - 4.0 3.0");
        assert_eq!(most, "max. 4.0/s");
        assert!(svg.contains("aria-label=\"Requests: now 3.0/s, max. 4.0/s\""), "{svg}");
        let line = svg.split("class=\"line\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(line.matches('M').count(), 2, "{line}");
        assert!(!svg.contains("style=") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn a_chart_without_points_states_that_it_has_no_data() {
        for points in [&[][..], &[f32::NAN], &[f32::NAN, f32::NAN]] {
            let Drawn { svg, most, .. } = draw("Requests", "/s", points);
            assert_eq!(most, "no data yet");
            assert!(svg.contains("no data yet") && !svg.contains("NaN"), "{svg}");
        }
        assert!(draw("Zero", "", &[0.0, 0.0]).svg.contains("now 0, max. 0"));
    }
}
