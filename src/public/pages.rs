//! The start page and the pages of products.

use crate::config::{Pages, Product};
use crate::http::errors::ApiError;
use crate::http::page::html;
use crate::state::State;
use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::Data;
use askama::Template;
use iptunnel_domain::limit::Policy;

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
    /// What is said in place of the countdown.
    left: String,
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
    /// Seconds until the code expires, for the countdown of the script. `None` while it is in use.
    seconds: Option<u64>,
    refused: Option<String>,
    /// The limits and what they say when they refuse.
    limits: [(&'static str, &'static str); 4],
}

/// What a limit says when it refuses a code.
const LIMITS: [(Policy, &str); 4] = [
    (Policy::IssuePerIpHour, "Your network has had all its codes for this hour."),
    (Policy::IssuePerIpDay, "Your network has had all its codes for today."),
    (Policy::IssuePerSessionHour, "This browser has had all its codes for this hour."),
    (Policy::IssuePerFingerprintDay, "This browser has had all its codes for today."),
];

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
        /// Seconds until then. `None` if an installation is using the code.
        left: Option<u64>,
        /// Whether this request has made it.
        is_new: bool,
    },
    /// The reason why no code was issued, and the limit that refused it.
    Refused(ApiError, Option<Policy>),
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
    let mut seconds = None;
    match message {
        PageMessage::Nothing => {}
        PageMessage::Issued { code, until, left, is_new } => {
            if is_new {
                status = StatusCode::CREATED;
            }
            seconds = left;
            let left = match left {
                Some(_) => format!("Valid until {until} (UTC)."),
                None => "In use.".to_owned(),
            };
            let command = command.replace("{code}", &code);
            let unattended = unattended.replace("{code}", &code);
            issued = Some(IssuedView { code, left, command, unattended });
        }
        PageMessage::Refused(error, limit) => {
            status = error.status;
            let words = LIMITS.iter().find(|(policy, _)| Some(*policy) == limit);
            let words = words.map_or(error.message, |(_, words)| (*words).to_owned());
            let when = error.retry_after.map(|s| format!(" You can try again in {}.", span(s)));
            refused = Some(words + &when.unwrap_or_default());
        }
    }
    let page = CodePage {
        name: &product.name,
        title: title_of(&product.name),
        command: &command,
        unattended: &unattended,
        is_own: pages.install_command.contains(OWN_INSTALLER),
        issued,
        seconds,
        refused,
        limits: LIMITS.map(|(policy, words)| (policy.name(), words)),
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
