//! Small charts as SVG, drawn here: the browser needs nothing but a stylesheet.

use std::fmt::Write;

const WIDTH: f32 = 300.0;
const HEIGHT: f32 = 72.0;
/// Room for the scale above the curve.
const TOP: f32 = 12.0;

/// A number as short as people read it.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() => "–".into(),
        v if v >= 1e6 => format!("{:.1}M", value / 1e6),
        v if v >= 1e4 => format!("{:.0}k", value / 1e3),
        v if v >= 1e3 => format!("{:.1}k", value / 1e3),
        v if v >= 10.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 0.1 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A curve over `points`, the oldest first; a gap where one is not a number. `title` and `unit` are
/// words of ours.
pub fn svg(title: &str, unit: &str, points: &[f32]) -> String {
    let known = points.iter().copied().filter(|point| point.is_finite());
    let (now, max) = (known.clone().next_back(), known.fold(0.0_f32, f32::max));
    let top = if max > 0.0 { max } else { 1.0 };
    let step = WIDTH / (points.len().max(2) - 1) as f32;
    let place = |index: usize, value: f32| {
        (index as f32 * step, HEIGHT - 1.0 - value / top * (HEIGHT - TOP - 2.0))
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
    let said = match now {
        Some(now) => {
            format!("{title}: now {}{unit}, at most {}{unit}", short(now.into()), short(max.into()))
        }
        None => format!("{title}: nothing yet"),
    };
    let scale = if now.is_some() { format!("{}{unit}", short(max.into())) } else { String::new() };
    format!(
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{said}\">\
         <path class=\"area\" d=\"{area}\"/><path class=\"line\" d=\"{line}\"/>\
         <text x=\"0\" y=\"8\">{scale}</text></svg>"
    )
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
        for (value, words) in said.into_iter().chain(more) {
            assert_eq!(short(value), words);
        }
    }

    #[test]
    fn a_chart_says_its_figures_and_leaves_gaps_open() {
        let svg = svg("Requests", "/s", &[1.0, 2.0, f32::NAN, 4.0, 3.0]);
        assert!(svg.contains("aria-label=\"Requests: now 3.0/s, at most 4.0/s\""), "{svg}");
        let line = svg.split("class=\"line\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(line.matches('M').count(), 2, "{line}");
        assert!(!svg.contains("style=") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        for points in [&[][..], &[f32::NAN], &[f32::NAN, f32::NAN]] {
            let svg = svg("Requests", "/s", points);
            assert!(svg.contains("nothing yet") && !svg.contains("NaN"), "{svg}");
        }
        assert!(svg("Zero", "", &[0.0, 0.0]).contains("now 0, at most 0"));
    }
}
