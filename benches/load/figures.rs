//! Formats figures for people.

use crate::statistics::Spread;

/// The median, with the range if the values differ.
pub fn ranged(spread: Spread, show: fn(f64) -> String) -> String {
    if spread.min == spread.max {
        return show(spread.median);
    }
    format!("{} ({}\u{2013}{})", show(spread.median), show(spread.min), show(spread.max))
}

/// Megabytes with one decimal.
pub fn megabytes(value: f64) -> String {
    format!("{value:.1} MB")
}

/// A ratio with three decimals.
pub fn ratio(value: f64) -> String {
    format!("{value:.3}")
}

/// A multiple with one decimal.
pub fn times(value: f64) -> String {
    format!("{value:.1} times")
}

/// A time in microseconds, shown in milliseconds or seconds if it is long.
pub fn duration(micros: f64) -> String {
    if micros < 1e3 {
        format!("{micros:.0} \u{b5}s")
    } else if micros < 1e6 {
        format!("{:.2} ms", micros / 1e3)
    } else {
        format!("{:.2} s", micros / 1e6)
    }
}

/// A whole number with commas between the thousands.
pub fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
