//! Serves the reference.

use crate::http::errors::ApiError;
use crate::http::page::stored;
use crate::http::respond::failure_for;
use crate::public::reference::Reference;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};

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
        .body(reference.json())
}

/// `GET /docs`
pub async fn page(request: HttpRequest, reference: Data<Reference>) -> HttpResponse {
    match reference.page() {
        Some(page) => stored(page),
        None => failure_for(&request, ApiError::internal()),
    }
}
