//! Whether the server is there, and whether requests should be sent here.

use crate::http::respond::{Success, readiness, success};
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
    description = "Says that the server answers.",
    responses((status = 200, description = "It does.", body = Success<Health>)),
)]
pub async fn healthz() -> HttpResponse {
    success(StatusCode::OK, Health { status: "ok" }, "OK")
}

/// `GET /readyz`
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "readyz",
    tag = "Health",
    summary = "Readiness",
    description = "Says whether requests should be sent here.",
    responses(
        (
            status = 200,
            description = "They should.",
            body = String,
            content_type = "text/plain",
            example = "ready\n",
        ),
        (
            status = 503,
            description = "They should not: the server is stopping, or cannot store anything.",
            body = String,
            content_type = "text/plain",
            example = "not ready\n",
        ),
    ),
)]
pub async fn readyz(state: Data<State>) -> HttpResponse {
    readiness(&state.health)
}
