//! The gRPC codes that the data path names.

use weft_mesh::errors::CONNECT_CODES;

pub(crate) const OK: u8 = 0;
pub(crate) const CANCELLED: u8 = 1;
pub(crate) const UNKNOWN: u8 = 2;
pub(crate) const DEADLINE_EXCEEDED: u8 = 4;
pub(crate) const INTERNAL: u8 = 13;
pub(crate) const UNAVAILABLE: u8 = 14;
/// Counts calls that ended without a status because the caller went away. It is no gRPC code.
pub(crate) const CANCELLED_BY_CALLER: u8 = 17;

/// The code in a value of `grpc-status`. UNKNOWN for anything that is no code.
pub(crate) fn parse(value: &[u8]) -> u8 {
    match value {
        [one @ b'0'..=b'9'] => one - b'0',
        [b'1', one @ b'0'..=b'6'] => 10 + one - b'0',
        _ => UNKNOWN,
    }
}

/// The code that Connect has this name for.
pub(crate) fn of_name(name: &str) -> Option<u8> {
    // Connect spells it `canceled`; gRPC's spelling is accepted as well.
    if name == "cancelled" {
        return Some(CANCELLED);
    }
    let place = CONNECT_CODES.iter().skip(1).position(|code| code.eq_ignore_ascii_case(name))? + 1;
    u8::try_from(place).ok()
}
