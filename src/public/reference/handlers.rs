//! Serves the reference.

use crate::http::errors::ApiError;
use crate::http::page::stored;
use crate::http::respond::failure_for;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;

/// The document and the page. Made once, because they do not change at run time.
pub struct Reference {
    /// The document.
    pub json: Bytes,
    /// The page. `None` if rendering failed.
    pub page: Option<Bytes>,
}

/// `GET /api/v2/openapi.json`
#[utoipa::path(
    get,
    path = "/api/v2/openapi.json",
    operation_id = "document",
    tag = "Health",
    summary = "OpenAPI document",
    description = "Returns the OpenAPI 3.1 document of this API.",
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
        Some(page) => stored(page.clone()),
        None => failure_for(&request, ApiError::internal()),
    }
}
