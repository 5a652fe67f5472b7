//! Liveness and readiness.

use crate::http::respond::{Success, json, readiness, success};
use crate::state::State;
use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::Data;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    #[schema(pattern = "^ok$", examples("ok"))]
    status: &'static str,
}

/// `GET /api/v2/healthz`
#[utoipa::path(
    get,
    path = "/api/v2/healthz",
    operation_id = "healthz",
    tag = "Health",
    summary = "Health check",
    description = "Reports that the server is running.",
    responses((status = 200, description = "The server is running.", body = Success<Health>)),
)]
pub async fn healthz() -> HttpResponse {
    success(StatusCode::OK, Health { status: "ok" }, "OK")
}

/// `GET /healthz`
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "main_stack_healthz",
    tag = "Main stack",
    summary = "Health check",
    description = "Reports that the server is running.",
    responses((status = 200, description = "The server is running.", body = Health)),
)]
pub async fn main_stack_healthz() -> HttpResponse {
    json(StatusCode::OK, &Health { status: "ok" })
}

/// `GET /readyz`
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "readyz",
    tag = "Health",
    summary = "Readiness",
    description = "Reports whether the server is ready for requests. For load balancers.",
    responses(
        (
            status = 200,
            description = "The server is ready.",
            body = String,
            content_type = "text/plain",
            example = "ready\n",
        ),
        (
            status = 503,
            description = "The server is not ready: it is shutting down or cannot write to its store.",
            body = String,
            content_type = "text/plain",
            example = "not ready\n",
        ),
    ),
)]
pub async fn readyz(state: Data<State>) -> HttpResponse {
    readiness(&state.health)
}
