//! The API reference: one OpenAPI document made from the handlers, and a page made from it.
//!
//! * [`document`](mod@document): the document; [`operations`]: what many handlers share, as a table;
//!   [`requests`]: what requests hold
//! * [`view`]: the document as the page shows it; [`example`]: its examples

mod document;
mod example;
pub mod operations;
pub mod requests;
mod view;

use super::errors::ApiError;
use super::respond::failure_for;
use crate::config::Config;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use bytes::Bytes;

/// Document and page, made once: they depend on nothing that changes at run time.
pub struct Reference {
    json: Bytes,
    page: Option<Bytes>,
}

impl Reference {
    /// The reference of a server that is set up like this.
    pub fn new(config: &Config) -> Self {
        let document = document::document(&config.products);
        let page = view::Page::of(&document, config).render().ok();
        Self { json: document.to_string().into(), page: page.map(Bytes::from) }
    }
}

/// `GET /api/v2/openapi.json`
#[utoipa::path(
    get,
    path = "/api/v2/openapi.json",
    operation_id = "document",
    tag = "Health",
    summary = "This reference",
    description = "The OpenAPI 3.1 document that this reference is made from.",
    responses((status = 200, description = "The document.", body = serde_json::Value)),
)]
pub async fn document(reference: Data<Reference>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "application/json"))
        .insert_header((CACHE_CONTROL, "no-cache"))
        .body(reference.json.clone())
}

/// `GET /docs`
pub async fn page(request: HttpRequest, reference: Data<Reference>) -> HttpResponse {
    match &reference.page {
        Some(page) => super::page::stored(page.clone()),
        None => failure_for(&request, ApiError::internal()),
    }
}
