//! The ids of traces and spans, as W3C Trace Context writes them.

use std::{fmt, str::FromStr};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// The id with these bytes; `None` if their number is wrong, or if all are zero.
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                let bytes: [u8; $bytes] = bytes.try_into().ok()?;
                (bytes != [0; $bytes]).then_some(Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                if text.len() != 2 * $bytes || !text.is_ascii() {
                    return Err(InvalidId);
                }
                let mut bytes = [0; $bytes];
                for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
                    let digit = |c: u8| char::from(c).to_digit(16).ok_or(InvalidId);
                    // Two hexadecimal digits fit into a byte.
                    *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
                }
                Self::from_bytes(&bytes).ok_or(InvalidId)
            }
        }
    };
}

id! {
    /// A trace's id: 16 bytes, not all zero.
    TraceId, 16
}
id! {
    /// A span's id, unique in its trace: 8 bytes, not all zero.
    SpanId, 8
}

/// Not an id: the wrong number of hexadecimal digits, another character, or all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id: allowed are hexadecimal digits, 32 for a trace and 16 for a span, not all of them zero")]
pub struct InvalidId;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_and_written_as_hexadecimal_digits() {
        let text = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(text.parse::<TraceId>().unwrap().to_string(), text);
        assert_eq!("00F067AA0BA902B7".parse::<SpanId>().unwrap().to_string(), "00f067aa0ba902b7");
        let zero = "0".repeat(32);
        for bad in [
            "",
            "4bf9",
            "4bf92f3577b34da6a3ce929d0e0e473g",
            "<script>alert(1)</script>aaaaaaa",
            "éééééééééééééééé",
            &zero,
        ] {
            assert!(bad.parse::<TraceId>().is_err(), "{bad}");
        }
    }
}
