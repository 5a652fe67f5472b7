//! What the disk under the server's data can do: no durable answer is faster than one sync, so the figures of
//! the server are read beside it.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use crate::failure::{Context, Result};

/// Two such measurements, before and after what is read beside them, take a third of a second.
const SYNCS: usize = 500;
const APPENDED_BYTES: usize = 4096;

/// Times `fdatasync` after 4 KiB appended to a growing file in `directory`. The write itself only reaches the
/// page cache and is left out. Returns the times in microseconds.
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
