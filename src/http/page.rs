//! Pages as HTML, and what they load. All of it is in the program.

use super::errors::ApiError;
use crate::config::{Pages, Product};
use crate::hex::hex;
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use sha2::{Digest, Sha256};

/// Nothing but our own scripts, styles, images and requests; nobody may frame us.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// A file in `assets/`, compiled into the program.
macro_rules! asset {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../assets/", $name)).as_slice())
    };
}

/// What pages load, by name.
const ASSETS: [(&str, &[u8]); 6] = [
    asset!("code.js"),
    asset!("console.css"),
    asset!("console.js"),
    asset!("docs.css"),
    asset!("icon.svg"),
    asset!("page.css"),
];

fn asset_named(name: &str) -> Option<&'static [u8]> {
    ASSETS.iter().find(|(known, _)| *known == name).map(|(_, content)| *content)
}

/// The paths of everything that pages load.
pub fn asset_paths() -> impl Iterator<Item = String> {
    ASSETS.iter().map(|(name, _)| format!("/assets/{name}"))
}

/// `GET /assets/{name}`
pub async fn asset(request: HttpRequest) -> HttpResponse {
    let name = request.path().trim_start_matches("/assets/");
    let Some(content) = asset_named(name) else {
        return error_page(&ApiError::not_found());
    };
    let tag = format!("\"{}\"", hex(&Sha256::digest(content)));
    let known = request.headers().get(IF_NONE_MATCH).and_then(|known| known.to_str().ok());
    // Compared weakly (RFC 9110, section 13.1.2): a proxy that compresses weakens the tag.
    let is_same = |known: &str| {
        let known = known.trim();
        known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag
    };
    let is_known = known.is_some_and(|known| known.split(',').any(is_same));
    let mut builder =
        HttpResponse::build(if is_known { StatusCode::NOT_MODIFIED } else { StatusCode::OK });
    // Asked for again each time, which costs a 304, so that a new program is seen at once.
    builder.insert_header((CACHE_CONTROL, "no-cache")).insert_header((ETAG, tag));
    if is_known {
        return builder.finish();
    }
    builder.insert_header((CONTENT_TYPE, kind(name))).body(content)
}

fn kind(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

/// A page. Nobody keeps it: it may hold a code.
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

/// A page that is the same for everybody.
pub fn stored(html: bytes::Bytes) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/html; charset=utf-8"))
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header(("Content-Security-Policy", POLICY))
        .insert_header(("Referrer-Policy", "same-origin"))
        .body(html)
}

/// How people call a product: the reference spells its own with capitals, others go by their name.
pub fn title_of(product: &str) -> &str {
    if product == "slowdns" { "SlowDNS" } else { product }
}

#[derive(Template)]
#[template(path = "landing.html")]
struct Landing<'a> {
    products: &'a [Product],
}

/// The first page: what there are codes for.
pub fn landing(products: &[Product]) -> HttpResponse {
    html(StatusCode::OK, &Landing { products })
}

/// A code as its page shows it where there is no script to do so.
struct IssuedView {
    code: String,
    until: String,
    command: String,
    unattended: String,
}

#[derive(Template)]
#[template(path = "code.html")]
struct CodePage<'a> {
    name: &'a str,
    title: &'a str,
    command: &'a str,
    unattended: &'a str,
    issued: Option<IssuedView>,
    refused: Option<String>,
}

/// What a product's page has to say.
pub enum Said {
    /// Nothing yet.
    Nothing,
    /// A code, in full, and when it is over.
    Issued {
        /// The code: a secret.
        code: String,
        /// When it is over, for people.
        until: String,
    },
    /// Why there is no code.
    Refused(ApiError),
}

/// The variable by which an installer is given its code without being asked for it.
fn variable(product: &str) -> String {
    format!("{}_INSTALL_CODE", product.to_ascii_uppercase().replace('-', "_"))
}

/// The page of a product.
pub fn code_page(product: &Product, pages: &Pages, public_url: &str, said: Said) -> HttpResponse {
    let fill = |command: &str| {
        command
            .replace("{public_url}", public_url)
            .replace("{product}", &product.name)
            .replace("{variable}", &variable(&product.name))
    };
    let (command, unattended) = (fill(&pages.install_command), fill(&pages.unattended_command));
    let (mut status, mut issued, mut refused) = (StatusCode::OK, None, None);
    match said {
        Said::Nothing => {}
        Said::Issued { code, until } => {
            status = StatusCode::CREATED;
            let command = command.replace("{code}", &code);
            let unattended = unattended.replace("{code}", &code);
            issued = Some(IssuedView { code, until, command, unattended });
        }
        Said::Refused(error) => {
            status = error.status;
            let when = error.retry_after.map(|s| format!(" You can try again in {}.", span(s)));
            refused = Some(error.message + &when.unwrap_or_default());
        }
    }
    let page = CodePage {
        name: &product.name,
        title: title_of(&product.name),
        command: &command,
        unattended: &unattended,
        issued,
        refused,
    };
    html(status, &page)
}

/// A span of time as people say it, rounded up.
fn span(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..90 => (seconds, "second"),
        90..5400 => (seconds.div_ceil(60), "minute"),
        _ => (seconds.div_ceil(3600), "hour"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage<'a> {
    status: u16,
    message: &'a str,
}

/// An error as a page.
pub fn error_page(error: &ApiError) -> HttpResponse {
    html(error.status, &ErrorPage { status: error.status.as_u16(), message: &error.message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_the_unit_that_fits_and_never_too_short() {
        let said = [(1, "1 second"), (89, "89 seconds"), (90, "2 minutes"), (5400, "2 hours")];
        for (seconds, words) in said {
            assert_eq!(span(seconds), words);
        }
    }

    #[test]
    fn the_variable_is_one_that_a_shell_takes() {
        assert_eq!(variable("slowdns"), "SLOWDNS_INSTALL_CODE");
        assert_eq!(variable("my-dns2"), "MY_DNS2_INSTALL_CODE");
    }

    #[test]
    fn the_code_page_with_all_it_loads_is_under_30_000_bytes() {
        let assets = ["page.css", "code.js", "icon.svg"];
        let sizes = assets.map(|name| asset_named(name).unwrap().len());
        let template = include_str!("../../templates/code.html").len()
            + include_str!("../../templates/base.html").len();
        let total = sizes.iter().sum::<usize>() + template + 2000;
        assert!(total < 30_000, "{total} bytes, with 2,000 for two long commands");
    }
}
