//! HTML pages and the assets they load. All are compiled into the program.

use super::errors::ApiError;
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use bytes::Bytes;
use iptunnel_domain::hex::hex;
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

/// The content security policy: own scripts, styles, images and requests only, and no frames.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// A file in `assets/`, compiled into the program.
struct Asset {
    name: &'static str,
    content: &'static [u8],
    /// Its entity tag: the hash of the content.
    tag: String,
}

macro_rules! asset {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../assets/", $name)).as_slice())
    };
}

static ASSETS: LazyLock<[Asset; 7]> = LazyLock::new(|| {
    [
        asset!("code.js"),
        asset!("console.css"),
        asset!("console.js"),
        asset!("docs.css"),
        asset!("docs.js"),
        asset!("icon.svg"),
        asset!("page.css"),
    ]
    .map(|(name, content)| {
        let tag = format!("\"{}\"", hex(&Sha256::digest(content)));
        Asset { name, content, tag }
    })
});

fn asset_named(name: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.name == name)
}

/// Returns the paths of all assets.
pub fn asset_paths() -> impl Iterator<Item = String> {
    ASSETS.iter().map(|asset| format!("/assets/{}", asset.name))
}

/// `GET /assets/{name}`
pub async fn asset(request: HttpRequest) -> HttpResponse {
    let name = request.path().trim_start_matches("/assets/");
    let Some(Asset { content, tag, .. }) = asset_named(name) else {
        return error_page(&ApiError::not_found());
    };
    tagged(&request, tag, kind(name), Bytes::from_static(content))
}

/// Sends content with its entity tag, or says that the client has it already.
pub fn tagged(request: &HttpRequest, tag: &str, kind: &str, content: Bytes) -> HttpResponse {
    let known = request.headers().get(IF_NONE_MATCH).and_then(|known| known.to_str().ok());
    // Compared weakly (RFC 9110, section 13.1.2): a proxy that compresses weakens the tag.
    let is_same = |known: &str| {
        let known = known.trim();
        known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag
    };
    let is_known = known.is_some_and(|known| known.split(',').any(is_same));
    let mut builder =
        HttpResponse::build(if is_known { StatusCode::NOT_MODIFIED } else { StatusCode::OK });
    // The client revalidates each time (a 304), so that a new version shows at once.
    builder.insert_header((CACHE_CONTROL, "no-cache")).insert_header((ETAG, tag));
    if is_known {
        return builder.finish();
    }
    builder.insert_header((CONTENT_TYPE, kind)).body(content)
}

fn kind(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

/// Renders a page. It must not be cached, because it may contain a code.
pub fn html(status: StatusCode, page: &impl Template) -> HttpResponse {
    let Ok(text) = page.render() else {
        return HttpResponse::InternalServerError().finish();
    };
    HttpResponse::build(status)
        .insert_header((CONTENT_TYPE, "text/html; charset=utf-8"))
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header(("Content-Security-Policy", POLICY))
        .insert_header(("Referrer-Policy", "same-origin"))
        .body(text)
}

/// Returns a page that is the same for everybody.
pub fn stored(html: Bytes) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/html; charset=utf-8"))
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header(("Content-Security-Policy", POLICY))
        .insert_header(("Referrer-Policy", "same-origin"))
        .body(html)
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage<'a> {
    status: u16,
    message: &'a str,
}

/// Renders an error as a page.
pub fn error_page(error: &ApiError) -> HttpResponse {
    html(error.status, &ErrorPage { status: error.status.as_u16(), message: &error.message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_page_with_its_assets_is_under_30_000_bytes() {
        let assets = ["page.css", "code.js", "icon.svg"];
        let sizes = assets.map(|name| asset_named(name).unwrap().content.len());
        let template = include_str!("../../templates/code.html").len()
            + include_str!("../../templates/base.html").len();
        let total = sizes.iter().sum::<usize>() + template + 2000;
        assert!(total < 30_000, "{total} bytes, with 2,000 for two long commands");
    }
}
