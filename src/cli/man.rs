//! `man`: the manual pages.

use super::Cli;
use super::terminal::{print, tell};
use clap::CommandFactory;
use std::path::Path;

/// Prints the page of the program, or writes the pages of all commands into a folder.
///
/// # Errors
/// Standard output or the folder cannot be written.
pub fn man(folder: Option<&Path>) -> Result<(), String> {
    let Some(folder) = folder else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
        rendered.map_err(|error| format!("the page cannot be made: {error}"))?;
        return print(&String::from_utf8_lossy(&page));
    };
    clap_mangen::generate_to(Cli::command(), folder).map_err(|error| {
        format!("{}: the pages cannot be written: {error}; the folder must exist", folder.display())
    })?;
    tell(&format!("The pages are in {}", folder.display()))
}
