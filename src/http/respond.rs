//! Responses: the two JSON envelopes, times as text, and the headers of rate-limited routes.

use super::errors::ApiError;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use iptunnel_actors::{Health, Rates};
use iptunnel_domain::Timestamp;
use iptunnel_domain::limit::tightest;
use serde::Serialize;
use std::fmt::Write;
use utoipa::ToSchema;

/// The envelope of a success.
#[derive(Serialize, ToSchema)]
pub(crate) struct Success<'a, T> {
    data: T,
    meta: Meta<'a>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Meta<'a> {
    /// For people.
    #[schema(examples("OK"))]
    message: &'a str,
}

/// The envelope of a page of a listing.
#[derive(Serialize, ToSchema)]
pub(crate) struct Paged<'a, T> {
    pub(crate) data: T,
    pub(crate) meta: PagedMeta<'a>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct PagedMeta<'a> {
    /// For people.
    #[schema(examples("OK"))]
    pub(crate) message: &'a str,
    pub(crate) pagination: Pagination,
}

/// Which page of a listing this is.
#[derive(Serialize, ToSchema)]
pub(crate) struct Pagination {
    /// The page; the first is 1.
    #[schema(examples(1))]
    pub(crate) page: u32,
    /// The most entries of a page.
    #[schema(examples(50))]
    pub(crate) per_page: u32,
    /// The entries of all pages.
    #[schema(examples(1))]
    pub(crate) total: usize,
    /// The number of pages.
    #[schema(examples(1))]
    pub(crate) pages: usize,
}

/// The envelope of a failure.
#[derive(Serialize, ToSchema)]
pub(crate) struct V2Failure<'a> {
    error: V2Error<'a>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct V2Error<'a> {
    /// For machines.
    code: &'a str,
    /// For people; safe to show to operators.
    message: &'a str,
}

/// The envelope of a failure on the main stack's routes.
#[derive(Serialize, ToSchema)]
pub(crate) struct LegacyFailure<'a> {
    /// For people.
    #[schema(examples("The request cannot be granted."))]
    error: &'a str,
}

fn builder(status: StatusCode) -> HttpResponseBuilder {
    let mut builder = HttpResponse::build(status);
    // Responses contain codes, tokens or momentary state, so they must not be cached.
    builder.insert_header((CACHE_CONTROL, HeaderValue::from_static("no-store")));
    builder
}

/// The initial capacity of a body, in bytes. Most responses fit; the longest grow once.
const TYPICAL_BODY: usize = 512;

/// Makes a JSON response.
pub fn json(status: StatusCode, body: &impl Serialize) -> HttpResponse {
    let mut bytes = Vec::with_capacity(TYPICAL_BODY);
    match serde_json::to_writer(&mut bytes, body) {
        Ok(()) => builder(status)
            .insert_header((CONTENT_TYPE, HeaderValue::from_static("application/json")))
            .body(bytes),
        Err(_) => builder(StatusCode::INTERNAL_SERVER_ERROR).finish(),
    }
}

/// Makes a v2 success.
pub fn success(status: StatusCode, data: impl Serialize, message: &str) -> HttpResponse {
    json(status, &Success { data, meta: Meta { message } })
}

fn with_retry_after(mut response: HttpResponse, error: &ApiError) -> HttpResponse {
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Makes a v2 failure.
pub fn failure(error: impl Into<ApiError>) -> HttpResponse {
    let error = error.into();
    let body = V2Failure { error: V2Error { code: error.code, message: &error.message } };
    with_retry_after(json(error.status, &body), &error)
}

/// Makes a failure of the legacy routes.
pub fn legacy_failure(error: impl Into<ApiError>) -> HttpResponse {
    let error = error.into();
    with_retry_after(json(error.status, &LegacyFailure { error: &error.message }), &error)
}

/// Makes the text of a failure, in the envelope of one of the two APIs.
pub fn failure_text(is_v2: bool, error: &ApiError) -> Vec<u8> {
    let text = if is_v2 {
        serde_json::to_vec(&V2Failure {
            error: V2Error { code: error.code, message: &error.message },
        })
    } else {
        serde_json::to_vec(&LegacyFailure { error: &error.message })
    };
    // Texts always become JSON.
    text.unwrap_or_default()
}

/// Returns whether a path belongs to the API whose failures have a code.
pub fn is_v2(path: &str) -> bool {
    path.strip_prefix("/api/v2").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Makes a failure in the format of the path's API, or a page where a browser asks for HTML.
pub fn failure_for(request: &HttpRequest, error: ApiError) -> HttpResponse {
    if is_v2(request.path()) {
        return failure(error);
    }
    let wants_page = request
        .headers()
        .get("accept")
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.to_ascii_lowercase().contains("text/html"));
    if wants_page {
        return super::page::error_page(&error);
    }
    legacy_failure(error)
}

/// Makes a 405 response that names the allowed methods.
pub fn method_not_allowed(request: &HttpRequest, allowed: &[Method]) -> HttpResponse {
    let mut response = failure_for(request, ApiError::method_not_allowed());
    let list: Vec<&str> = allowed.iter().map(Method::as_str).collect();
    if let Ok(value) = HeaderValue::from_str(&list.join(", ")) {
        response.headers_mut().insert(HeaderName::from_static("allow"), value);
    }
    response
}

/// Adds the rate limit headers of draft-ietf-httpapi-ratelimit-headers-10: every policy with its
/// quota `q` and window `w`, and for the tightest one the remaining quota `r` and the seconds `t`
/// until its window ends.
pub fn with_rates(
    mut response: HttpResponse,
    rates: Option<&Rates>,
    now: Timestamp,
) -> HttpResponse {
    let Some(rates) = rates.filter(|rates| !rates.is_empty()) else { return response };
    let mut policies = String::new();
    for standing in rates {
        let comma = if policies.is_empty() { "" } else { ", " };
        let (name, window) = (standing.policy.name(), standing.policy.window_seconds());
        // Writing to a string cannot fail.
        let _ = write!(policies, "{comma}\"{name}\";q={};w={window}", standing.allowed);
    }
    let tight = tightest(rates).map(|s| {
        format!("\"{}\";r={};t={}", s.policy.name(), s.remaining(), s.window_end.since(now))
    });
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&policies) {
        headers.insert(HeaderName::from_static("ratelimit-policy"), value);
    }
    if let Some(Ok(value)) = tight.map(|tight| HeaderValue::from_str(&tight)) {
        headers.insert(HeaderName::from_static("ratelimit"), value);
    }
    response
}

/// Makes a plain text response.
pub fn text(status: StatusCode, text: &'static str) -> HttpResponse {
    HttpResponse::build(status).content_type("text/plain; charset=utf-8").body(text)
}

/// The body of the answer of a server that is ready.
pub const READY: &str = "ready\n";

/// Answers whether the server is ready for requests.
pub fn readiness(health: &Health) -> HttpResponse {
    if health.is_ready() {
        text(StatusCode::OK, READY)
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

/// Formats a time by RFC 3339 in UTC, with `+00:00` and whole seconds.
pub fn rfc3339(time: Timestamp) -> String {
    let (days, seconds) = (time.0 / 86_400, time.0 % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}+00:00")
}

/// Parses a time by RFC 3339, such as `2026-03-31T12:05:00+00:00`, in any time zone, or a date, which is
/// its first second in UTC. `None` if the text is neither, or is before 1970. Fractions of a second are
/// dropped.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    let (date, time) = match text.split_at_checked(10)? {
        (date, "") => (date, "00:00:00Z"),
        (date, rest) => (date, rest.strip_prefix(['T', 't', ' '])?),
    };
    let days = days_of(date)?;
    let (clock, zone) = time.split_at_checked(8)?;
    let [hour, minute, second] = numbers(clock, ":", [23, 59, 60])?;
    let zone = match zone.strip_prefix('.') {
        None => zone,
        Some(fraction) => {
            let rest = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            (rest.len() < fraction.len()).then_some(rest)?
        }
    };
    let ahead = match zone.split_at_checked(1)? {
        ("Z" | "z", "") => 0,
        (sign @ ("+" | "-"), offset) => {
            let [hours, minutes] = numbers(offset, ":", [23, 59])?;
            let seconds = (hours * 3600 + minutes * 60).cast_signed();
            if sign == "+" { seconds } else { -seconds }
        }
        _ => return None,
    };
    let local = days * 86_400 + hour * 3600 + minute * 60 + second;
    local.checked_add_signed(-ahead).map(Timestamp)
}

/// Returns the days from the Unix epoch to a date such as `2026-03-31`.
fn days_of(date: &str) -> Option<u64> {
    let (year, rest) = date.split_once('-')?;
    let ([year], [month, day]) = (numbers(year, "-", [9999])?, numbers(rest, "-", [12, 31])?);
    if year.checked_ilog10()? != 3 || month == 0 || day == 0 {
        return None;
    }
    // The inverse of `civil`: years begin on 1 March.
    let year_of_march = if month > 2 { year } else { year - 1 };
    let (era, year_of_era) = (year_of_march / 400, year_of_march % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    // A day that the month does not have is the first of the next one.
    (civil(days) == (year, month, day)).then_some(days)
}

/// Parses numbers of two or more digits with a separator between them, each at most as large as in `most`.
fn numbers<const N: usize>(text: &str, between: &str, most: [u64; N]) -> Option<[u64; N]> {
    let mut parts = text.split(between);
    let mut numbers = [0; N];
    for (number, most) in numbers.iter_mut().zip(most) {
        let part = parts.next()?;
        let is_number = part.len() >= 2 && part.bytes().all(|byte| byte.is_ascii_digit());
        *number = part.parse().ok().filter(|number| is_number && *number <= most)?;
    }
    parts.next().is_none().then_some(numbers)
}

/// Returns the Gregorian date (year, month, day) of a day since the Unix epoch.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counts in eras of 400 years (146,097 days) that begin on 1 March, so that a leap day is the
    // last day of its year. There are 719,468 days between 0000-03-01 and 1970-01-01.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_with_a_numeric_offset() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00+00:00"),
            (951_782_399, "2000-02-28T23:59:59+00:00"),
            (951_782_400, "2000-02-29T00:00:00+00:00"),
            (951_868_800, "2000-03-01T00:00:00+00:00"),
            (1_774_958_700, "2026-03-31T12:05:00+00:00"),
            (4_107_542_400, "2100-03-01T00:00:00+00:00"),
        ] {
            assert_eq!(rfc3339(Timestamp(seconds)), text);
            assert_eq!(parse_time(text), Some(Timestamp(seconds)));
        }
    }

    #[test]
    fn a_time_is_read_in_any_zone_and_a_date_is_its_first_second() {
        for (text, seconds) in [
            ("2000-02-29", 951_782_400),
            ("2000-02-29T00:00:00Z", 951_782_400),
            ("2000-02-29T01:30:00+01:30", 951_782_400),
            ("2000-02-28 22:00:00.123-02:00", 951_782_400),
        ] {
            assert_eq!(parse_time(text), Some(Timestamp(seconds)), "{text}");
        }
        for wrong in [
            "",
            "2000-02-30",
            "2001-02-29",
            "2000-13-01",
            "2000-00-10",
            "2000-2-29",
            "1969-12-31",
            "1970-01-01T00:00:00+01:00",
            "2000-02-29T24:00:00Z",
            "2000-02-29T00:00:00",
            "2000-02-29T00:00:00.Z",
            "2000-02-29T00:00:00+1:00",
            "+200-02-29",
            "2000-02-29x",
            "２０００",
            "tomorrow at noon",
        ] {
            assert_eq!(parse_time(wrong), None, "{wrong}");
        }
    }
}
