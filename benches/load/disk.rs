//! Measures the disk with the server's data. No durable answer is faster than one sync, so the server's figures
//! are compared with it.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use crate::failure::{Context, Result};

/// The number of syncs. Two measurements, before and after the compared step, take a third of a second.
const SYNCS: usize = 500;
const APPENDED_BYTES: usize = 4096;

/// Measures `fdatasync` after each append of 4 KiB to a file in `directory`. The times are in microseconds. They
/// do not include the write, which only reaches the page cache.
pub fn measure(directory: &Path) -> Result<Vec<u32>> {
    let doing = "cannot measure the disk's fdatasync";
    let mut file = File::create(directory.join("fdatasync")).context(doing)?;
    let block = [0x5a; APPENDED_BYTES];
    let mut latencies_micros = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        file.write_all(&block).context(doing)?;
        let begun = Instant::now();
        file.sync_data().context(doing)?;
        latencies_micros.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
    Ok(latencies_micros)
}
