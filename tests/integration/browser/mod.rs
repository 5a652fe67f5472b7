//! What people see, in a real browser.

mod code_page;
mod console;
pub mod driver;
mod looks;
