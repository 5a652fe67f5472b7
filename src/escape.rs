//! Escapes characters that a terminal obeys instead of showing: people elsewhere choose host names,
//! and an operator reads them.

use std::borrow::Cow;
use std::fmt::Write;

/// Returns whether a terminal, or the text after it, could look different because of `c`: control
/// characters, changes of the writing direction, separators of lines, and characters without width.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061C}' | '\u{200B}' | '\u{200E}' | '\u{200F}' | '\u{FEFF}'
            | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{2069}')
}

fn replace(text: &str, is_unsafe: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !is_unsafe(c) => safe.push(c),
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            // All of them have at most four digits. Strings of JSON and of TOML have this form too.
            c => {
                let _ = write!(safe, "\\u{:04x}", u32::from(c));
            }
        }
    }
    Cow::Owned(safe)
}

/// Escapes a piece of one line, such as a cell of a table.
pub fn escaped(text: &str) -> Cow<'_, str> {
    replace(text, is_unsafe)
}

/// Escapes whole lines: line feeds stay. JSON stays JSON with the same content, because such characters
/// are in its strings alone.
pub fn escaped_lines(text: &str) -> Cow<'_, str> {
    replace(text, |c| c != '\n' && is_unsafe(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_moves_the_cursor_or_turns_the_text_is_shown_and_not_obeyed() {
        assert_eq!(escaped("a\u{1b}[2Jb"), "a\\u001b[2Jb");
        assert_eq!(escaped("a\r\n\tb\u{7f}\u{9b}"), "a\\r\\n\\tb\\u007f\\u009b");
        assert_eq!(
            escaped("evil\u{202e}txt.exe\u{2066}\u{200f}"),
            "evil\\u202etxt.exe\\u2066\\u200f"
        );
        assert_eq!(escaped_lines("a\u{85}\nb\u{2028}c\n"), "a\\u0085\nb\\u2028c\n");
    }

    #[test]
    fn ordinary_text_of_any_script_stays_as_it_is() {
        for text in ["ns1.example.com", "Zürich 東京 👩‍💻", "שלום", "back\\slash"] {
            assert!(matches!(escaped(text), Cow::Borrowed(same) if same == text));
        }
    }

    proptest! {
        #[test]
        fn json_keeps_its_content(text: String) {
            let json = serde_json::json!({ "text": text }).to_string();
            let safe = escaped_lines(&json).into_owned();
            prop_assert!(!safe.contains(is_unsafe));
            let read: serde_json::Value = serde_json::from_str(&safe).unwrap();
            prop_assert_eq!(read["text"].as_str(), Some(&*text));
        }
    }
}
