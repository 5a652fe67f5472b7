//! Measures the memory that a wave of installs leaves behind: how much is resident when it is over and nobody calls.

use std::time::Duration;

use tokio::time::sleep;

use crate::closed_loop;
use crate::failure::Result;
use crate::figures::{grouped, megabytes};
use crate::options::Options;
use crate::report::{print_head, print_value};
use crate::scenario::open_callers;
use crate::server::Server;
use crate::statistics::Spread;
use crate::steps::{self, Machine};
use crate::targets::{self, Target};

/// The default number of installs.
pub const INSTALLS: u64 = 60_000;
const CONNECTIONS: usize = 64;
/// The time after the last answer at which memory is measured. Meanwhile records leave memory, and the allocator
/// gives pages back.
const REST: [Duration; 4] = [Duration::ZERO, secs(10), secs(30), secs(60)];

const AFTER: Target = Target::lower("RSS after the wave, idle again", 80.0, 60.0, megabytes);

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Installs machines, waits, and prints the server's memory. Each step is done for all machines before the next one,
/// so that all activations are open at once.
pub async fn run(options: &Options, server: &Server, installs: u64) -> Result<()> {
    sleep(Duration::from_secs(1)).await;
    let idle = server.memory()?.resident_mb;
    let mut callers = open_callers(server.public, CONNECTIONS).await?;
    let machines = Machine::all().take(usize::try_from(installs).unwrap_or(usize::MAX)).collect();
    let (issued, _) = closed_loop::run(steps::ISSUE, &mut callers, machines).await?;
    let (prechecked, _) = closed_loop::run(steps::PRECHECK, &mut callers, issued).await?;
    let (activated, _) = closed_loop::run(steps::ACTIVATE, &mut callers, prechecked).await?;
    closed_loop::run(steps::CONFIRM, &mut callers, activated).await?;
    drop(callers);
    print_head(options);
    print_value("installs", &grouped(installs as f64));
    print_value("idle before", &megabytes(idle));
    let (mut rested, mut last) = (Duration::ZERO, idle);
    for rest in REST {
        sleep(rest.saturating_sub(rested)).await;
        rested = rest;
        last = server.memory()?.resident_mb;
        print_value(&format!("{} s after", rest.as_secs()), &megabytes(last));
    }
    print_value("peak", &megabytes(server.memory()?.peak_mb));
    println!();
    targets::print(&[(AFTER, Spread::of([last]))]);
    Ok(())
}
