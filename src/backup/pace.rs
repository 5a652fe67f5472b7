//! How fast a backup is made.

use iptunnel_storage::Pace;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a backup works before it rests: less than a lone activate takes, which waits for it at worst.
const WORK: Duration = Duration::from_micros(200);
/// How many times as long it then rests: it takes an eighth of one processor at most.
const REST: u32 = 7;
/// The longest rest: that after a sync of 15 ms. A slower disk is busy with others.
const LONGEST: Duration = Duration::from_millis(100);

/// Returns the pace of a server that answers requests meanwhile. The backup ends when `stop` is set.
pub fn beside_requests(stop: Arc<AtomicBool>) -> Pace {
    let begun = Mutex::new(Instant::now());
    Arc::new(move || {
        let mut begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
        let worked = begun.elapsed();
        if worked >= WORK {
            std::thread::sleep((worked * REST).min(LONGEST));
            *begun = Instant::now();
        }
        !stop.load(Ordering::Relaxed)
    })
}

/// Returns the pace of a command that works while no server runs.
pub fn alone() -> Pace {
    Arc::new(|| true)
}
