//! The API reference: one OpenAPI document made from the handlers, and a page made from it.
//!
//! * [`document`](mod@document): the document; [`operations`]: what many handlers share, as a table;
//!   [`catalogue`]: what errors mean
//! * [`view`]: the document as the page shows it; [`example`]: its examples
//! * [`handlers`]: both, handed out

pub mod catalogue;
mod document;
mod example;
pub mod handlers;
pub mod operations;
mod view;

use crate::config::Config;
use askama::Template;
use bytes::Bytes;
use handlers::Reference;

/// The reference of a server that is set up like this.
pub fn of(config: &Config) -> Reference {
    let document = document::document(&config.products);
    let page = view::Page::of(&document, config).render().ok();
    Reference { json: document.to_string().into(), page: page.map(Bytes::from) }
}
