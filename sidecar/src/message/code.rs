//! gRPC's codes that the data path names.

use weft_mesh::errors::CONNECT_CODES;

pub(crate) const OK: u8 = 0;
pub(crate) const CANCELLED: u8 = 1;
pub(crate) const UNKNOWN: u8 = 2;
pub(crate) const DEADLINE_EXCEEDED: u8 = 4;
pub(crate) const INTERNAL: u8 = 13;
pub(crate) const UNAVAILABLE: u8 = 14;
/// What a call is counted under that ended without a status: the caller went away.
pub(crate) const CANCELLED_BY_CALLER: u8 = 17;

/// Of the value of `grpc-status`. What is no code is UNKNOWN.
pub(crate) fn parse(value: &[u8]) -> u8 {
    match value {
        [one @ b'0'..=b'9'] => one - b'0',
        [b'1', one @ b'0'..=b'6'] => 10 + one - b'0',
        _ => UNKNOWN,
    }
}

/// Of Connect's name for it.
pub(crate) fn of_name(name: &str) -> Option<u8> {
    // gRPC's spelling of it is taken as well.
    if name == "cancelled" {
        return Some(CANCELLED);
    }
    let place = CONNECT_CODES.iter().skip(1).position(|code| code.eq_ignore_ascii_case(name))? + 1;
    u8::try_from(place).ok()
}
