//! Helpers that define routes: path, name and methods.

use super::errors::ApiError;
use super::respond::{failure_for, method_not_allowed};
use actix_web::http::Method;
use actix_web::web::{resource, route};
use actix_web::{Handler, HttpRequest, HttpResponse, Resource, Responder, guard};

/// Answers 404 for paths without a route.
pub async fn nothing_here(request: HttpRequest) -> HttpResponse {
    failure_for(&request, ApiError::not_found())
}

/// The name of a route in metrics and log.
#[derive(Clone, Copy)]
pub struct RouteName(pub &'static str);

/// Defines a path with one method. Other methods get 405.
pub fn at<F, Args>(path: &str, name: &'static str, method: Method, handler: F) -> Resource
where
    F: Handler<Args>,
    Args: actix_web::FromRequest + 'static,
    F::Output: Responder + 'static,
{
    let allowed: &'static [Method] =
        if method == Method::GET { &[Method::GET, Method::HEAD] } else { &[Method::POST] };
    let only = guard::fn_guard(move |context| allowed.contains(&context.head().method));
    at_all(path, name, allowed).route(route().guard(only).to(handler))
}

/// Defines a path without handlers. Methods that get no handler later get 405.
fn at_all(path: &str, name: &'static str, allowed: &'static [Method]) -> Resource {
    resource(path).app_data(RouteName(name)).default_service(
        route()
            .to(move |request: HttpRequest| async move { method_not_allowed(&request, allowed) }),
    )
}

/// Defines a path with a page (GET) and a form (POST).
pub fn both<F, A, G, B>(path: &str, name: &'static str, look: F, send: G) -> Resource
where
    F: Handler<A>,
    A: actix_web::FromRequest + 'static,
    F::Output: Responder + 'static,
    G: Handler<B>,
    B: actix_web::FromRequest + 'static,
    G::Output: Responder + 'static,
{
    let read = guard::Any(guard::Get()).or(guard::Head());
    at_all(path, name, &[Method::GET, Method::HEAD, Method::POST])
        .route(route().guard(read).to(look))
        .route(route().guard(guard::Post()).to(send))
}
