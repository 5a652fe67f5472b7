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
use std::sync::{Arc, OnceLock};

/// The document and the page. They do not change at run time, and are made when somebody asks for one first:
/// many servers are never asked, and this was a third of the time of a start.
pub struct Reference {
    config: Arc<Config>,
    made: OnceLock<Made>,
}

struct Made {
    json: Bytes,
    page: Option<Bytes>,
}

impl Reference {
    /// The reference for this configuration.
    pub const fn of(config: Arc<Config>) -> Self {
        Self { config, made: OnceLock::new() }
    }

    fn made(&self) -> &Made {
        self.made.get_or_init(|| {
            let document = document::document(&self.config.products);
            let page = view::Page::of(&document, &self.config).render().ok();
            Made { json: document.to_string().into(), page: page.map(Bytes::from) }
        })
    }

    /// Returns the document.
    pub fn json(&self) -> Bytes {
        self.made().json.clone()
    }

    /// Returns the page; `None` if rendering failed.
    pub fn page(&self) -> Option<Bytes> {
        self.made().page.clone()
    }
}
