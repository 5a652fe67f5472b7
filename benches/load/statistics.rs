//! Percentiles, medians and ranges.

use std::time::Duration;

/// The reported figures of one step.
#[derive(Clone, Copy)]
pub struct Summary {
    /// The number of answered requests.
    pub count: usize,
    /// The number of answered requests per second.
    pub rate: f64,
    /// The median time in microseconds.
    pub p50_micros: f64,
    /// The 99th percentile of the times in microseconds.
    pub p99_micros: f64,
}

impl Summary {
    /// Summarizes the times of all requests of a step that took `elapsed` in total.
    pub fn of(mut latencies_micros: Vec<u32>, elapsed: Duration) -> Self {
        latencies_micros.sort_unstable();
        let count = latencies_micros.len();
        Self {
            count,
            rate: count as f64 / elapsed.as_secs_f64(),
            p50_micros: f64::from(percentile(&latencies_micros, 50)),
            p99_micros: f64::from(percentile(&latencies_micros, 99)),
        }
    }

    /// Summarizes the times of actions done one at a time, so their sum is the total time.
    pub fn of_sequence(latencies_micros: Vec<u32>) -> Self {
        let elapsed = latencies_micros.iter().map(|micros| u64::from(*micros)).sum();
        Self::of(latencies_micros, Duration::from_micros(elapsed))
    }
}

/// The nearest-rank percentile of sorted values, or 0 without values.
pub fn percentile(sorted: &[u32], percent: usize) -> u32 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// The median and the range of one figure over several rounds.
#[derive(Clone, Copy)]
pub struct Spread {
    /// The median. For an even number of values, the mean of the two in the middle.
    pub median: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
}

impl Spread {
    /// The median and the range, or `None` without values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let upper = *values.get(values.len() / 2)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        Some(Self { median: (lower + upper) / 2.0, min: *values.first()?, max: *values.last()? })
    }
}
