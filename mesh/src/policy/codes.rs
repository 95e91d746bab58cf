//! Sets of gRPC statuses.

use super::rule::Violation;
use crate::errors::GRPC_CODES;

/// A set of gRPC status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeSet(u32);

impl CodeSet {
    /// UNAVAILABLE, INTERNAL and DATA_LOSS.
    pub const FAILURES: Self = Self(1 << 13 | 1 << 14 | 1 << 15);

    /// Whether the set contains a code.
    #[inline]
    pub fn has(self, code: u8) -> bool {
        code < 32 && self.0 & (1 << code) != 0
    }

    /// The codes of the set, in ascending order.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..32).filter(move |code| self.has(*code))
    }
}

impl FromIterator<u8> for CodeSet {
    fn from_iter<I: IntoIterator<Item = u8>>(codes: I) -> Self {
        Self(codes.into_iter().filter(|code| *code < 32).fold(0, |set, code| set | 1 << code))
    }
}

/// Statuses that may count as failures. An empty list means [`CodeSet::FAILURES`].
pub(super) fn checked_failures(codes: impl Iterator<Item = i64>) -> Result<CodeSet, Violation> {
    // CANCELLED and DEADLINE_EXCEEDED end a call because its caller gave up: they say nothing about the service.
    const ALLOWED: &str = "a gRPC status but OK, CANCELLED and DEADLINE_EXCEEDED";
    let mut set = Vec::new();
    for code in codes {
        match u8::try_from(code) {
            Ok(code @ (2 | 3 | 5..=16)) => set.push(code),
            Ok(code) if usize::from(code) < GRPC_CODES.len() => {
                return Err(Violation { found: GRPC_CODES[usize::from(code)].to_owned(), allowed: ALLOWED });
            }
            _ => return Err(Violation { found: code.to_string(), allowed: ALLOWED }),
        }
    }
    Ok(if set.is_empty() { CodeSet::FAILURES } else { set.into_iter().collect() })
}
