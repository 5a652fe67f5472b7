//! Bytes as hexadecimal text.

use std::fmt::Write;

/// Returns two lower-case hexadecimal digits for each byte.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Returns the bytes of lower-case hexadecimal text; `None` if the text has another form.
pub fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_the_bytes_that_it_was_made_of() {
        assert_eq!(bytes_of(&hex(&[0, 15, 255])), Some(vec![0, 15, 255]));
        assert_eq!(bytes_of(""), Some(Vec::new()));
        for wrong in ["0", "0g", "FF", "€"] {
            assert_eq!(bytes_of(wrong), None, "{wrong}");
        }
    }
}
