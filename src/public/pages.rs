//! The start page and the pages of products.

use crate::config::{Pages, Product};
use crate::http::errors::ApiError;
use crate::http::page::html;
use crate::state::State;
use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::Data;
use askama::Template;

/// Returns a product's display name: `SlowDNS` for `slowdns`, else the name itself.
pub fn title_of(product: &str) -> &str {
    if product == "slowdns" { "SlowDNS" } else { product }
}

#[derive(Template)]
#[template(path = "landing.html")]
struct Landing<'a> {
    products: &'a [Product],
}

/// `GET /`: the list of products.
pub async fn landing(state: Data<State>) -> HttpResponse {
    html(StatusCode::OK, &Landing { products: &state.live.config.load().products })
}

/// An issued code, for a page without scripts.
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
    /// Whether the command loads our own installer, which the page then describes.
    is_own: bool,
    issued: Option<IssuedView>,
    refused: Option<String>,
}

/// The message on a product's page.
pub enum PageMessage {
    /// No message.
    Nothing,
    /// A new code and its expiry.
    Issued {
        /// The full code, a secret.
        code: String,
        /// The time of day when it expires.
        until: String,
    },
    /// The reason why no code was issued.
    Refused(ApiError),
}

/// Where a command loads our own installer from.
const OWN_INSTALLER: &str = "{public_url}/{product}/install.sh";

/// Returns the environment variable that passes the code to an unattended installer.
pub fn variable(product: &str) -> String {
    format!("{}_INSTALL_CODE", product.to_ascii_uppercase().replace('-', "_"))
}

/// Renders the page of a product.
pub fn code_page(
    product: &Product,
    pages: &Pages,
    public_url: &str,
    message: PageMessage,
) -> HttpResponse {
    let fill = |command: &str| {
        command
            .replace("{public_url}", public_url)
            .replace("{product}", &product.name)
            .replace("{variable}", &variable(&product.name))
    };
    let (command, unattended) = (fill(&pages.install_command), fill(&pages.unattended_command));
    let (mut status, mut issued, mut refused) = (StatusCode::OK, None, None);
    match message {
        PageMessage::Nothing => {}
        PageMessage::Issued { code, until } => {
            status = StatusCode::CREATED;
            let command = command.replace("{code}", &code);
            let unattended = unattended.replace("{code}", &code);
            issued = Some(IssuedView { code, until, command, unattended });
        }
        PageMessage::Refused(error) => {
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
        is_own: pages.install_command.contains(OWN_INSTALLER),
        issued,
        refused,
    };
    html(status, &page)
}

/// Formats a time span for people, rounded up.
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
    fn time_spans_use_a_fitting_unit_and_are_rounded_up() {
        let message = [(1, "1 second"), (89, "89 seconds"), (90, "2 minutes"), (5400, "2 hours")];
        for (seconds, words) in message {
            assert_eq!(span(seconds), words);
        }
    }

    #[test]
    fn the_variable_is_a_valid_shell_name() {
        assert_eq!(variable("slowdns"), "SLOWDNS_INSTALL_CODE");
        assert_eq!(variable("my-dns2"), "MY_DNS2_INSTALL_CODE");
    }
}
