//! The cookies of a request.

use actix_web::HttpRequest;
use actix_web::http::header::COOKIE;

/// Returns the values of all cookies with this name, in their order. There may be several, such as one
/// of another path or a stale one. Cookies that are not ours may contain any bytes.
pub fn cookies<'r>(request: &'r HttpRequest, name: &'r str) -> impl Iterator<Item = &'r str> {
    let headers = request.headers().get_all(COOKIE);
    let pairs = headers.flat_map(|header| header.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (key, value) = pair.split_at_checked(at)?;
        let value = value.get(1..)?.trim_ascii();
        (key.trim_ascii() == name.as_bytes()).then(|| std::str::from_utf8(value).ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::HeaderValue;
    use actix_web::test::TestRequest;

    fn values(headers: &[&[u8]]) -> Vec<String> {
        let request = headers.iter().fold(TestRequest::default(), |request, header| {
            request.append_header((COOKIE, HeaderValue::from_bytes(header).unwrap()))
        });
        cookies(&request.to_http_request(), "a").map(str::to_owned).collect()
    }

    #[test]
    fn every_cookie_of_a_name_is_found_beside_any_others() {
        assert_eq!(values(&[b"a=1; b=2;a=3", b"a = 4=4 "]), ["1", "3", "4=4"]);
        assert_eq!(values(&[b"b=\xff\xfe; a=1", b"a=\xff; aa=2; ; =; a; a="]), ["1", ""]);
        assert!(values(&[]).is_empty());
    }
}
