//! The users that flags name.

use std::str::FromStr;

/// The number of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Uid(pub(super) u32);

impl FromStr for Uid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(number) = text.parse() {
            return Ok(Self(number));
        }
        let users = std::fs::read_to_string("/etc/passwd").map_err(|e| format!("/etc/passwd: {e}"))?;
        let of_line = |line: &str| {
            let mut fields = line.split(':');
            (fields.next()? == text).then(|| fields.nth(1)?.parse().ok())?
        };
        users.lines().find_map(of_line).map(Self).ok_or_else(|| format!("this host has no user `{text}`"))
    }
}
