//! Field names. Those that a relay often sees are known names, which are small numbers.

use std::fmt;

/// A field name. A known one is a small number, so that a search compares no text.
#[derive(Clone, Copy)]
pub struct Name {
    id: Id,
    text: &'static str,
}

/// The number of a known name, its place in [`TEXTS`]; [`OTHER`] for every other name.
///
/// The first [`LAST_PSEUDO`] are the pseudo-headers. The names of the static table (RFC 7541, appendix A) are in its
/// order, so that [`static_index`] is arithmetic.
pub(crate) type Id = u8;

/// The number of a name that is not a known one. Such a name is kept as text.
pub(crate) const OTHER: Id = 0;

/// The last of the pseudo-headers.
pub(crate) const LAST_PSEUDO: Id = 6;

/// The last of the names in the static table.
const LAST_STATIC: Id = 53;

macro_rules! names {
    ($($name:ident $text:literal)*) => {
        /// The texts of the known names, by number.
        pub(crate) const TEXTS: &[&str] = &["", $($text),*];

        impl Name {
            $(#[doc = concat!("`", $text, "`")] pub const $name: Name = Name::other($text);)*
        }
    };
}

names! {
    AUTHORITY ":authority"
    METHOD ":method"
    PATH ":path"
    SCHEME ":scheme"
    STATUS ":status"
    PROTOCOL ":protocol"
    ACCEPT_CHARSET "accept-charset"
    ACCEPT_ENCODING "accept-encoding"
    ACCEPT_LANGUAGE "accept-language"
    ACCEPT_RANGES "accept-ranges"
    ACCEPT "accept"
    ACCESS_CONTROL_ALLOW_ORIGIN "access-control-allow-origin"
    AGE "age"
    ALLOW "allow"
    AUTHORIZATION "authorization"
    CACHE_CONTROL "cache-control"
    CONTENT_DISPOSITION "content-disposition"
    CONTENT_ENCODING "content-encoding"
    CONTENT_LANGUAGE "content-language"
    CONTENT_LENGTH "content-length"
    CONTENT_LOCATION "content-location"
    CONTENT_RANGE "content-range"
    CONTENT_TYPE "content-type"
    COOKIE "cookie"
    DATE "date"
    ETAG "etag"
    EXPECT "expect"
    EXPIRES "expires"
    FROM "from"
    HOST "host"
    IF_MATCH "if-match"
    IF_MODIFIED_SINCE "if-modified-since"
    IF_NONE_MATCH "if-none-match"
    IF_RANGE "if-range"
    IF_UNMODIFIED_SINCE "if-unmodified-since"
    LAST_MODIFIED "last-modified"
    LINK "link"
    LOCATION "location"
    MAX_FORWARDS "max-forwards"
    PROXY_AUTHENTICATE "proxy-authenticate"
    PROXY_AUTHORIZATION "proxy-authorization"
    RANGE "range"
    REFERER "referer"
    REFRESH "refresh"
    RETRY_AFTER "retry-after"
    SERVER "server"
    SET_COOKIE "set-cookie"
    STRICT_TRANSPORT_SECURITY "strict-transport-security"
    TRANSFER_ENCODING "transfer-encoding"
    USER_AGENT "user-agent"
    VARY "vary"
    VIA "via"
    WWW_AUTHENTICATE "www-authenticate"
    TE "te"
    CONNECTION "connection"
    KEEP_ALIVE "keep-alive"
    PROXY_CONNECTION "proxy-connection"
    UPGRADE "upgrade"
    HTTP2_SETTINGS "http2-settings"
    TRAILER "trailer"
    FORWARDED "forwarded"
    PRIORITY "priority"
    GRPC_STATUS "grpc-status"
    GRPC_MESSAGE "grpc-message"
    GRPC_TIMEOUT "grpc-timeout"
    GRPC_ENCODING "grpc-encoding"
    GRPC_ACCEPT_ENCODING "grpc-accept-encoding"
    GRPC_STATUS_DETAILS_BIN "grpc-status-details-bin"
    GRPC_PREVIOUS_RPC_ATTEMPTS "grpc-previous-rpc-attempts"
    GRPC_RETRY_PUSHBACK_MS "grpc-retry-pushback-ms"
    GRPC_TRACE_BIN "grpc-trace-bin"
    TRACEPARENT "traceparent"
    TRACESTATE "tracestate"
    BAGGAGE "baggage"
    B3 "b3"
    X_B3_TRACE_ID "x-b3-traceid"
    X_B3_SPAN_ID "x-b3-spanid"
    X_B3_PARENT_SPAN_ID "x-b3-parentspanid"
    X_REQUEST_ID "x-request-id"
    X_FORWARDED_FOR "x-forwarded-for"
    X_FORWARDED_HOST "x-forwarded-host"
    X_FORWARDED_PROTO "x-forwarded-proto"
    X_FORWARDED_CLIENT_CERT "x-forwarded-client-cert"
    X_WEFT_REASON "x-weft-reason"
}

impl Name {
    /// The name with this text, which must be in lower case. It may be a known name or any other.
    pub const fn other(text: &'static str) -> Name {
        Name { id: find_const(text.as_bytes()), text }
    }

    /// The name's text.
    pub const fn as_str(self) -> &'static str {
        self.text
    }

    pub(crate) const fn id(self) -> Id {
        self.id
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Name) -> bool {
        self.id == other.id && (self.id != OTHER || self.text == other.text)
    }
}

impl Eq for Name {}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

/// The first index in the static table with this name, or 0.
pub(crate) const fn static_index(id: Id) -> u8 {
    match id {
        1..=2 => id,
        3 => 4,
        4 => 6,
        5 => 8,
        7..=LAST_STATIC => id + 8,
        _ => 0,
    }
}

/// The number of the name with this text, or [`OTHER`].
pub(crate) fn find(text: &[u8]) -> Id {
    if text.is_empty() {
        return OTHER;
    }
    let id = SLOTS[slot_of(text)];
    if TEXTS[usize::from(id)].as_bytes() == text { id } else { OTHER }
}

/// [`find`] as a `const fn`, in which slices have no `==`.
const fn find_const(text: &[u8]) -> Id {
    let id = if text.is_empty() { OTHER } else { SLOTS[slot_of(text)] };
    let known = TEXTS[id as usize].as_bytes();
    if known.len() != text.len() {
        return OTHER;
    }
    let mut at = 0;
    while at < text.len() {
        if known[at] != text[at] {
            return OTHER;
        }
        at += 1;
    }
    id
}

/// The known names, each at the index that [`slot_of`] gives.
static SLOTS: [Id; 512] = slots();

/// A perfect hash of the known names. [`slots`] checks at compile time that no two share a slot.
const fn slot_of(text: &[u8]) -> usize {
    let (len, first, middle, last) = (text.len(), text[0], text[text.len() / 2], text[text.len() - 1]);
    (len * MULTIPLIERS[0]
        + first as usize * MULTIPLIERS[1]
        + middle as usize * MULTIPLIERS[2]
        + last as usize * MULTIPLIERS[3])
        % 512
}

/// Found by trial and error.
const MULTIPLIERS: [usize; 4] = [52, 48, 15, 61];

const fn slots() -> [Id; 512] {
    let mut slots = [OTHER; 512];
    let mut id = 1;
    while id < TEXTS.len() {
        let slot = slot_of(TEXTS[id].as_bytes());
        assert!(slots[slot] == OTHER, "two known names share a slot");
        slots[slot] = id as Id;
        id += 1;
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_is_found_by_its_text() {
        for (id, text) in TEXTS.iter().enumerate().skip(1) {
            assert_eq!(usize::from(find(text.as_bytes())), id, "{text}");
            let mut near = text.as_bytes().to_vec();
            near.push(b'x');
            assert_eq!(find(&near), OTHER);
        }
        assert_eq!(find(b""), OTHER);
        // No known name may be taken for another, so `remove_like` only has to look at names that are not known.
        let plain = |text: &str| text.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let all: std::collections::HashSet<_> = TEXTS.iter().map(|text| plain(text)).collect();
        assert_eq!(all.len(), TEXTS.len());
        assert_eq!(find(b"Te"), OTHER);
        assert_eq!(Name::other("te"), Name::TE);
        assert_ne!(Name::other("x-own"), Name::other("x-other"));
        assert_eq!(Name::PROTOCOL.id(), LAST_PSEUDO);
        assert_eq!(Name::WWW_AUTHENTICATE.id(), LAST_STATIC);
    }
}
