//! The first page, and the page of a product.

use crate::config::{Pages, Product};
use crate::http::errors::ApiError;
use crate::http::page::html;
use crate::state::State;
use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::Data;
use askama::Template;

/// How people call a product: the reference spells its own with capitals, others go by their name.
pub fn title_of(product: &str) -> &str {
    if product == "slowdns" { "SlowDNS" } else { product }
}

#[derive(Template)]
#[template(path = "landing.html")]
struct Landing<'a> {
    products: &'a [Product],
}

/// `GET /`: what there are codes for.
pub async fn landing(state: Data<State>) -> HttpResponse {
    html(StatusCode::OK, &Landing { products: &state.live.config.load().products })
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
}
