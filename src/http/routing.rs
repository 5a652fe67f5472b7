//! Paths, their names and their methods.

use super::errors::ApiError;
use super::respond::{failure_for, method_not_allowed};
use actix_web::http::Method;
use actix_web::web::{resource, route};
use actix_web::{Handler, HttpRequest, HttpResponse, Resource, Responder, guard};

/// The answer where no route is.
pub async fn nothing_here(request: HttpRequest) -> HttpResponse {
    failure_for(&request, ApiError::not_found())
}

/// What a route is called in metrics and log.
#[derive(Clone, Copy)]
pub struct RouteName(pub &'static str);

/// A path with one method; 405 for every other method.
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

/// A path whose routes are still to be added; 405 for every method that is not `allowed`.
fn at_all(path: &str, name: &'static str, allowed: &'static [Method]) -> Resource {
    resource(path).app_data(RouteName(name)).default_service(
        route()
            .to(move |request: HttpRequest| async move { method_not_allowed(&request, allowed) }),
    )
}

/// A path to look at, and to send a form to.
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
