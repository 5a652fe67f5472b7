//! The API reference: one OpenAPI document made from the handlers, and a page made from it.
//!
//! * [`document`](mod@document): the document; [`operations`]: a table of facts that handlers share;
//!   [`catalogue`]: the meaning of errors
//! * [`view`]: the model of the page; [`example`]: examples made from schemas
//! * [`handlers`]: the routes that serve both

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

/// Makes the reference for this configuration.
pub fn of(config: &Config) -> Reference {
    let document = document::document(&config.products);
    let page = view::Page::of(&document, config).render().ok();
    Reference { json: document.to_string().into(), page: page.map(Bytes::from) }
}
