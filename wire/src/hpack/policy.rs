//! Which fields are worth an entry in the encoder's table, and which must not get one.

use crate::headers::Name;
use crate::headers::name::{Id, OTHER, TEXTS};

/// What the encoder does with a field that is not in its table yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Insert the field when it is sent a second time.
    Repeats,
    /// The value differs from call to call: at most the name is worth an entry.
    Varies,
    /// A secret. In a table, others could guess it by probing (RFC 7541, section 7.1).
    Secret,
}

const SECRETS: [Name; 4] = [Name::AUTHORIZATION, Name::PROXY_AUTHORIZATION, Name::COOKIE, Name::SET_COOKIE];

/// Parts of names that mark the value as a secret.
const SECRET_PARTS: [&[u8]; 3] = [b"token", b"secret", b"api-key"];

const VARYING: [Name; 29] = [
    Name::AGE,
    Name::CONTENT_LENGTH,
    Name::CONTENT_LOCATION,
    Name::CONTENT_RANGE,
    Name::DATE,
    Name::ETAG,
    Name::EXPIRES,
    Name::IF_MATCH,
    Name::IF_MODIFIED_SINCE,
    Name::IF_NONE_MATCH,
    Name::IF_RANGE,
    Name::IF_UNMODIFIED_SINCE,
    Name::LAST_MODIFIED,
    Name::LOCATION,
    Name::RANGE,
    Name::RETRY_AFTER,
    Name::GRPC_MESSAGE,
    Name::GRPC_TIMEOUT,
    Name::GRPC_STATUS_DETAILS_BIN,
    Name::GRPC_RETRY_PUSHBACK_MS,
    Name::GRPC_TRACE_BIN,
    Name::TRACEPARENT,
    Name::TRACESTATE,
    Name::BAGGAGE,
    Name::B3,
    Name::X_B3_TRACE_ID,
    Name::X_B3_SPAN_ID,
    Name::X_B3_PARENT_SPAN_ID,
    Name::X_REQUEST_ID,
];

/// The policies of the known names, by number. [`of`] also checks the text of other names.
static POLICIES: [Policy; TEXTS.len()] = {
    let mut policies = [Policy::Repeats; TEXTS.len()];
    let mut at = 0;
    while at < VARYING.len() {
        policies[VARYING[at].id() as usize] = Policy::Varies;
        at += 1;
    }
    at = 0;
    while at < SECRETS.len() {
        policies[SECRETS[at].id() as usize] = Policy::Secret;
        at += 1;
    }
    policies
};

/// Whether a field can be in the table, so that it is worth a search.
pub(crate) fn may_repeat(id: Id, value: &[u8]) -> bool {
    match POLICIES[usize::from(id)] {
        Policy::Repeats => true,
        // `grpc-message` is mostly empty.
        Policy::Varies => value.is_empty(),
        Policy::Secret => false,
    }
}

/// What to do with a field that is not in the table.
pub(crate) fn of(id: Id, name: &[u8], value: &[u8]) -> Policy {
    let is_secret =
        |name: &[u8]| SECRET_PARTS.iter().any(|part| name.windows(part.len()).any(|window| window == *part));
    match POLICIES[usize::from(id)] {
        Policy::Repeats if id == OTHER && is_secret(name) => Policy::Secret,
        Policy::Repeats if id == Name::PATH.id() && value.contains(&b'?') => Policy::Varies,
        Policy::Varies if value.is_empty() => Policy::Repeats,
        policy => policy,
    }
}
