//! What people see, in a real browser.

mod code_page;
pub mod driver;
