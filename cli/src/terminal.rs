//! Makes text of others fit for a terminal.
//!
//! What a service answers, a folder's name or a line of a file may contain control characters. Printed as they are, they
//! move the cursor, change the title, hide what was printed before, or have the terminal answer as if the user typed.
//! Everything here is written as an escape instead, such as `\u{1b}`.

use weft_mesh::names::{acts_on_terminal, shown_up_to};

/// The most characters of a text that should be one line.
const LINE_CHARS: usize = 4_000;

/// A text on one line.
pub(crate) fn line(text: &str) -> String {
    shown_up_to(text, LINE_CHARS)
}

/// A text that may have several lines, at their full length. Tabs stay, too.
pub(crate) fn lines(text: &str) -> String {
    escaped(text, |c| c.escape_default().to_string())
}

/// The same value as JSON, with escapes in its strings. JSON itself demands them only for the characters before U+0020.
pub(crate) fn json(text: &str) -> String {
    // All of these characters are below U+10000.
    escaped(text, |c| format!("\\u{:04x}", u32::from(c)))
}

fn escaped(text: &str, escape: impl Fn(char) -> String) -> String {
    let is_harmless = |c: char| matches!(c, '\n' | '\t') || !acts_on_terminal(c);
    if text.chars().all(is_harmless) {
        return text.to_owned();
    }
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match is_harmless(c) {
            true => escaped.push(c),
            false => escaped.push_str(&escape(c)),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Controls of ASCII, DEL, a control of ISO 6429 in one character (CSI), and one that reverses what follows.
    const HOSTILE: &str = "a\x1b[2J\x07\x7f\u{9b}2J\u{202e}b";

    #[test]
    fn no_control_character_is_left() {
        let expected = r"a\u{1b}[2J\u{7}\u{7f}\u{9b}2J\u{202e}b";
        assert_eq!((line(HOSTILE), lines(HOSTILE)), (expected.to_owned(), expected.to_owned()));
        assert_eq!(line("a\nb\tc"), "a\\nb\\tc");
        assert_eq!(lines("a\nb\tc\rd"), "a\nb\tc\\rd");
        assert_eq!(line(&"x".repeat(100_000)).chars().count(), LINE_CHARS + 1);
        assert_eq!(line("Grüße, 世界"), "Grüße, 世界");
    }

    #[test]
    fn json_keeps_its_value() {
        let value = serde_json::json!({ HOSTILE: [HOSTILE, "\n", 1] });
        for text in [value.to_string(), serde_json::to_string_pretty(&value).expect("it is JSON")] {
            let shown = json(&text);
            assert!(!shown.chars().any(|c| c != '\n' && acts_on_terminal(c)), "{shown:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).expect("it is still JSON"), value);
        }
    }
}
