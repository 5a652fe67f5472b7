//! What a file of secrets may look like. Editors and copying add marks, line ends and blanks around a
//! secret: they are no part of it. Whatever else is around it is refused with a word, because a server
//! that took it for a part of the secret would start, and then refuse everybody who has the true one.

use zeroize::Zeroizing;

/// The mark with which some editors begin a file.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Returns the text of a file without a byte order mark and without blanks and line ends around it.
///
/// # Errors
/// What is wrong, without any of the text.
pub(super) fn bare(bytes: &[u8]) -> Result<Zeroizing<String>, &'static str> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| "the file is not text in UTF-8; save it as plain text")?;
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text).trim();
    if text.is_empty() {
        return Err(
            "the file is empty; restore it from a backup, or remove it if this server has \
                    never run: the first start makes a new one",
        );
    }
    Ok(Zeroizing::new(text.to_owned()))
}

/// Checks that a text is one secret, which a caller can send in a header.
///
/// # Errors
/// What is wrong, without any of the text.
pub(super) fn check_one(text: &str) -> Result<(), &'static str> {
    let is_quote = |c: char| "\"'`".contains(c);
    if text.contains(['\n', '\r']) {
        Err("the file holds more than one line; leave only the line with the secret")
    } else if text.starts_with(is_quote) || text.ends_with(is_quote) {
        Err("the secret is in quotes; remove them")
    } else if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        Err(
            "the secret has a character that cannot be sent in a header; use printable ASCII characters",
        )
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_line_ends_and_blanks_around_a_secret_are_no_part_of_it() {
        for text in ["secret", "secret\n", "secret\r\n", "\u{feff}secret\r\n", "\n \tsecret \n\n"] {
            let bare = bare(text.as_bytes()).unwrap();
            assert_eq!(*bare, "secret", "{text:?}");
            assert_eq!(check_one(&bare), Ok(()));
        }
    }

    #[test]
    fn whatever_else_is_around_a_secret_is_refused_with_a_word() {
        for (text, word) in
            [("", "empty"), ("\u{feff} \r\n", "empty"), ("\u{feff}\u{feff}", "ASCII")]
        {
            let found = bare(text.as_bytes()).and_then(|text| check_one(&text));
            assert!(found.unwrap_err().contains(word), "{text:?}");
        }
        assert!(bare(b"\xff\xfes\0e\0").unwrap_err().contains("UTF-8"));
        for (text, word) in [
            ("\"secret\"", "quotes"),
            ("'secret'", "quotes"),
            ("secret\nsecond", "more than one line"),
            ("secret\r\n\r\n# a comment", "more than one line"),
            ("secr\u{e9}t", "ASCII"),
            ("sec\tret", "ASCII"),
            ("sec\0ret", "ASCII"),
        ] {
            assert!(check_one(text).unwrap_err().contains(word), "{text:?}");
        }
    }
}
