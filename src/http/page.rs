//! The page where a code is asked for.

use super::errors::ApiError;
use crate::config::Product;
use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};

const SCRIPT: &str = include_str!("../../assets/code.js");
const STYLE: &str = include_str!("../../assets/page.css");
const DOCS_STYLE: &str = include_str!("../../assets/docs.css");

/// Nothing but our own script, style and requests; nobody may frame us.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

fn page(status: StatusCode, title: &str, body: &str) -> HttpResponse {
    let html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<link rel=\"stylesheet\" href=\"/assets/page.css\">\n</head>\n\
         <body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    );
    HttpResponse::build(status)
        .insert_header((CONTENT_TYPE, "text/html; charset=utf-8"))
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header(("Content-Security-Policy", POLICY))
        .insert_header(("Referrer-Policy", "same-origin"))
        .body(html)
}

/// The page of a product, with its button.
pub fn code_page(product: &Product) -> HttpResponse {
    // A name is letters, digits and hyphens: there is nothing to escape.
    let name = &product.name;
    let body = format!(
        "<h1>{name} install code</h1>\n\
         <p>The code is good for one server and for a few minutes. Have its terminal at hand.</p>\n\
         <p><button id=\"issue\" type=\"button\" data-product=\"{name}\">Get an install code</button></p>\n\
         <p id=\"result\" role=\"status\" aria-live=\"polite\"></p>\n\
         <noscript><p>This page needs JavaScript to ask for a code.</p></noscript>\n\
         <script src=\"/assets/code.js\" defer></script>"
    );
    page(StatusCode::OK, &format!("{name} install code"), &body)
}

/// An error as a page.
pub fn error_page(error: &ApiError) -> HttpResponse {
    let status = error.status.as_u16();
    // The words are ours, without markup.
    let body = format!("<h1>{status}</h1>\n<p>{}</p>", error.message);
    page(error.status, &format!("{status}"), &body)
}

fn asset(kind: &'static str, text: &'static str) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, kind))
        .insert_header((CACHE_CONTROL, "no-cache"))
        .body(text)
}

/// The page's script.
pub async fn script() -> HttpResponse {
    asset("text/javascript; charset=utf-8", SCRIPT)
}

/// The page's style.
pub async fn style() -> HttpResponse {
    asset("text/css; charset=utf-8", STYLE)
}

/// The style of the API reference.
pub async fn docs_style() -> HttpResponse {
    asset("text/css; charset=utf-8", DOCS_STYLE)
}

/// A page that is the same for everybody.
pub fn stored(html: bytes::Bytes) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/html; charset=utf-8"))
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header(("Content-Security-Policy", POLICY))
        .insert_header(("Referrer-Policy", "same-origin"))
        .body(html)
}
