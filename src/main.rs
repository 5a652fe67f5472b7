//! The program: its command line decides what happens.

use clap::Parser;

/// Faster than the system's allocator on the way of a request by a tenth and more, for 15 MB.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    iptunnel_server::cli::Cli::parse().run()
}
