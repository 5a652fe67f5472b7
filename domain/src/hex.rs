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

/// Returns the bytes of lower-case hexadecimal text; `None` if the text has another form or length.
pub fn bytes_of<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = value_of(*high)? << 4 | value_of(*low)?;
    }
    Some(bytes)
}

const fn value_of(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_the_bytes_that_it_was_made_of() {
        assert_eq!(bytes_of(&hex(&[0, 15, 255])), Some([0, 15, 255]));
        assert_eq!(bytes_of(""), Some([]));
        for wrong in ["", "0", "0g", "FF", "€", "000"] {
            assert_eq!(bytes_of::<1>(wrong), None, "{wrong}");
        }
    }
}
