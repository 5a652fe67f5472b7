//! The little statistics that is needed.

use std::time::Duration;

/// What one step took, reduced to what is reported.
#[derive(Clone, Copy)]
pub struct Summary {
    /// Requests answered.
    pub count: usize,
    /// Requests answered in a second.
    pub rate: f64,
    /// Half of the requests took no longer, in microseconds.
    pub p50_micros: f64,
    /// 99 of 100 requests took no longer, in microseconds.
    pub p99_micros: f64,
}

impl Summary {
    /// Reduces the times of all requests of a step that took `elapsed` as a whole.
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

    /// Reduces the times of what was done one after the other: together they are the whole.
    pub fn of_sequence(latencies_micros: Vec<u32>) -> Self {
        let elapsed = latencies_micros.iter().map(|micros| u64::from(*micros)).sum();
        Self::of(latencies_micros, Duration::from_micros(elapsed))
    }
}

/// The nearest-rank percentile of sorted values; 0 of none.
pub fn percentile(sorted: &[u32], percent: usize) -> u32 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// The same figure of several rounds.
#[derive(Clone, Copy)]
pub struct Spread {
    /// The middle one; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Median and range; nothing of no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let upper = *values.get(values.len() / 2)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        Some(Self { median: (lower + upper) / 2.0, min: *values.first()?, max: *values.last()? })
    }
}
