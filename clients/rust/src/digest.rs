//! The header `Repr-Digest` (RFC 9530): a checksum of the whole content, however it travelled.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// Whether `header` has a SHA-256 checksum and it is that of `content`.
///
/// The header is a list such as `sha-256=:BASE64:, sha-512=:BASE64:`. Others than SHA-256 do not count.
pub(crate) fn matches(header: &str, content: &[u8]) -> bool {
    let stated = header.split(',').find_map(|member| {
        let value = member.trim().strip_prefix("sha-256=:")?;
        STANDARD.decode(value.strip_suffix(':')?).ok()
    });
    stated.is_some_and(|stated| stated == Sha256::digest(content).as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf hello | openssl dgst -sha256 -binary | base64`
    const HELLO: &str = "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=";

    #[test]
    fn the_checksum_of_the_content_matches_also_beside_others() {
        assert!(matches(&format!("sha-256=:{HELLO}:"), b"hello"));
        assert!(matches(&format!("sha-512=:AAAA:, sha-256=:{HELLO}:"), b"hello"));
    }

    #[test]
    fn a_checksum_that_is_wrong_malformed_or_missing_does_not_match() {
        assert!(!matches(&format!("sha-256=:{HELLO}:"), b"hell"));
        let malformed = [HELLO.to_owned(), format!("sha-256=:{HELLO}"), "sha-256=:::".into()];
        for header in malformed.iter().map(String::as_str).chain(["", "sha-512=:AAAA:"]) {
            assert!(!matches(header, b"hello"), "{header}");
        }
    }
}
