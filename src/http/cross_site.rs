//! Detects requests that a page of another site makes a browser send.

use actix_web::http::header::HeaderMap;

/// Returns a header's text. A header that is not text becomes `?`, which matches no expected value.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

/// Returns whether a page of another site, or of another port of this host, sent this request.
/// Only browsers send the headers for this check; other programs pass it. `public_origin` is the
/// origin that browsers use where a proxy changes `Host`.
pub fn is_cross_site(headers: &HeaderMap, public_origin: Option<&str>) -> bool {
    // Fetch Metadata, which browsers send to trustworthy hosts. `none`: the user opened the page.
    if let Some(site) = header(headers, "sec-fetch-site") {
        return !matches!(site, "same-origin" | "none");
    }
    // RFC 6454.
    let Some(origin) = header(headers, "origin") else { return false };
    let host = origin.split_once("://").map(|(_, host)| host);
    let own_host = host.is_some() && host == header(headers, "host");
    !own_host && !public_origin.is_some_and(|public| origin.eq_ignore_ascii_case(public))
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::{HeaderName, HeaderValue};

    fn cross_site(public_origin: Option<&str>, pairs: &[(&'static str, &str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        is_cross_site(&headers, public_origin)
    }

    #[test]
    fn only_own_pages_and_programs_pass() {
        let cross_site = |pairs: &[_]| cross_site(Some("https://codes.example.com"), pairs);
        assert!(!cross_site(&[]));
        assert!(!cross_site(&[("sec-fetch-site", "same-origin")]));
        assert!(!cross_site(&[("sec-fetch-site", "none")]));
        assert!(cross_site(&[("sec-fetch-site", "same-site")]));
        assert!(cross_site(&[("sec-fetch-site", "cross-site")]));
        assert!(!cross_site(&[("origin", "https://codes.example.com")]));
        assert!(!cross_site(&[("origin", "http://127.0.0.1:1"), ("host", "127.0.0.1:1")]));
        assert!(cross_site(&[("origin", "https://evil.example.com"), ("host", "127.0.0.1:1")]));
        assert!(cross_site(&[("origin", "null")]));
        assert!(cross_site(&[
            ("sec-fetch-site", "cross-site"),
            ("origin", "https://codes.example.com"),
        ]));
    }

    #[test]
    fn a_browser_that_names_another_site_or_port_is_detected() {
        let is_from_elsewhere = |header: &[(&'static str, &str)]| {
            cross_site(None, &[&[("host", "127.0.0.1:9090")], header].concat())
        };
        assert!(!is_from_elsewhere(&[]));
        for site in ["same-origin", "none"] {
            assert!(!is_from_elsewhere(&[("sec-fetch-site", site)]), "{site}");
        }
        for site in ["same-site", "cross-site", "anything"] {
            assert!(is_from_elsewhere(&[("sec-fetch-site", site)]), "{site}");
        }
        assert!(!is_from_elsewhere(&[("origin", "http://127.0.0.1:9090")]));
        for origin in ["http://127.0.0.1:8080", "http://127.0.0.1", "https://evil.example", "null"]
        {
            assert!(is_from_elsewhere(&[("origin", origin)]), "{origin}");
        }
    }
}
