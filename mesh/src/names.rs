//! The names of the mesh: services, headers that it reads and writes, and the ports of its parts.

use std::{fmt, net::IpAddr, sync::Arc};

use crate::limits;

/// Headers that have a meaning for the mesh, all in lower case.
pub mod header {
    /// Request: the called service. It wins over everything else that could name one, and is removed before the request
    /// is sent on.
    pub const SERVICE: &str = "x-weft-service";
    /// Answer: the mesh made it, for this reason (see [`crate::errors::Reason`]).
    pub const ERROR: &str = "x-weft-error";
    /// Request, set by the inbound side: the caller's identity, in Envoy's format. Removed if it comes from outside.
    pub const CLIENT_CERT: &str = "x-forwarded-client-cert";
    /// Request, with CONNECT between sidecars: the caller's sidecar tunnels a connection that is not HTTP. Removed
    /// from a CONNECT or an upgrade that comes from outside.
    pub const TUNNEL: &str = "x-weft-tunnel";
    /// Request: an id that services pass on from call to call.
    pub const REQUEST_ID: &str = "x-request-id";
    /// Answer: it is a fallback's. The reason, as in [`ERROR`], and where it comes from: `breaker-open; to=prices.shop`.
    pub const FALLBACK: &str = "x-weft-fallback";
    /// Answer: do not retry before this many milliseconds have passed (gRFC A6).
    pub const PUSHBACK: &str = "grpc-retry-pushback-ms";
}

/// Default ports.
pub mod port {
    /// The sidecar's port for calls from the local service, on loopback.
    pub const OUTBOUND: u16 = 15001;
    /// The sidecar's port for calls from other sidecars.
    pub const INBOUND: u16 = 15006;
    /// The sidecar's admin port, on loopback.
    pub const ADMIN: u16 = 15000;
    /// The sidecar's metrics and probes.
    pub const METRICS: u16 = 15020;
    /// The control plane's gRPC port.
    pub const CONTROL: u16 = 15010;
    /// The port of the dashboard, which also receives spans.
    pub const DASHBOARD: u16 = 15080;
}

/// The namespace of a service whose name has none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// A service of the mesh: `NAME.NAMESPACE`, each a DNS label (RFC 1123). Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    full: Arc<str>,
    name_len: u8,
}

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a DNS label.
    #[error("`{0}` is not a DNS label: 1 to 63 of a-z, 0-9 and -, no - at either end")]
    Label(String),
    /// Not two labels.
    #[error("`{0}` is not a service's full name: NAME.NAMESPACE")]
    Shape(String),
}

impl ServiceName {
    /// A service by its two labels.
    ///
    /// # Errors
    /// Either is not a DNS label.
    pub fn new(name: &str, namespace: &str) -> Result<Self, NameError> {
        for label in [name, namespace] {
            if !is_label(label) {
                return Err(NameError::Label(shown(label)));
            }
        }
        Ok(Self { full: format!("{name}.{namespace}").into(), name_len: name.len() as u8 })
    }

    /// Reads `NAME.NAMESPACE`.
    ///
    /// # Errors
    /// It has another form.
    pub fn parse(full: &str) -> Result<Self, NameError> {
        let (name, namespace) = full.split_once('.').ok_or_else(|| NameError::Shape(shown(full)))?;
        Self::new(name, namespace)
    }

    /// Reads `NAME` or `NAME.NAMESPACE`.
    ///
    /// # Errors
    /// It has another form.
    pub fn parse_in(text: &str, namespace: &str) -> Result<Self, NameError> {
        if text.contains('.') { Self::parse(text) } else { Self::new(text, namespace) }
    }

    /// The service that an HTTP authority names, if it has one of these forms: `users`, `users.shop`, `users.shop.svc`,
    /// `users.shop.svc.cluster.local`, each with or without a port. An IP address, `localhost` or any other domain
    /// names no service.
    pub fn from_authority(authority: &str, namespace: &str) -> Option<Self> {
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => authority,
        };
        if host.parse::<IpAddr>().is_ok() || host.starts_with('[') || host.eq_ignore_ascii_case("localhost") {
            return None;
        }
        // The case of host names does not matter (RFC 3986, section 3.2.2).
        let host = host.to_ascii_lowercase();
        let mut labels = host.trim_end_matches('.').split('.');
        let name = labels.next()?;
        let namespace = labels.next().unwrap_or(namespace);
        match (labels.next(), labels.next(), labels.next(), labels.next()) {
            (None, ..) | (Some("svc"), None, ..) | (Some("svc"), Some("cluster"), Some("local"), None) => {
                Self::new(name, namespace).ok()
            }
            _ => None,
        }
    }

    /// `users` of `users.shop`.
    pub fn name(&self) -> &str {
        &self.full[..usize::from(self.name_len)]
    }

    /// `shop` of `users.shop`.
    pub fn namespace(&self) -> &str {
        &self.full[usize::from(self.name_len) + 1..]
    }

    /// `users.shop`
    pub fn as_str(&self) -> &str {
        &self.full
    }
}

impl From<&ServiceName> for Arc<str> {
    /// The full name, shared.
    fn from(name: &ServiceName) -> Self {
        Self::clone(&name.full)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

/// What [`is_label`] allows, for messages.
pub const LABEL: &str = "1 to 63 of a-z, 0-9 and -, no - at either end";

/// Whether a text is a DNS label in lower case.
pub fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// The longest text from a peer in a message or a log line.
const SHOWN_CHARS: usize = 100;

/// A peer's text for messages and log lines: at most 100 characters, and those that [act on a
/// terminal](acts_on_terminal) escaped.
pub fn shown(text: &str) -> String {
    shown_up_to(text, SHOWN_CHARS)
}

/// Like [`shown`], with at most `chars` characters.
pub fn shown_up_to(text: &str, chars: usize) -> String {
    let mut shown: String = text.chars().take(chars).flat_map(escaped).collect();
    if text.chars().nth(chars).is_some() {
        shown.push('…');
    }
    shown
}

fn escaped(c: char) -> impl Iterator<Item = char> {
    let (plain, escape) = if acts_on_terminal(c) { (None, Some(c.escape_default())) } else { (Some(c), None) };
    plain.into_iter().chain(escape.into_iter().flatten())
}

/// Whether a character is not just shown: the controls C0 and C1 and DEL, and the characters of Unicode that start a new
/// line or change the order of the text around them (UAX #9).
pub fn acts_on_terminal(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether a text is an identifier of protobuf, such as the name of a method.
pub fn is_identifier(text: &str) -> bool {
    text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Whether a text names a method with its protobuf service: `PACKAGE.SERVICE/METHOD`.
pub fn is_method_name(text: &str) -> bool {
    text.split_once('/').is_some_and(|(contract, method)| is_contract_name(contract) && is_identifier(method))
}

/// Whether a text is the full name of a protobuf service: identifiers with dots between them, at most 512 bytes.
pub fn is_contract_name(name: &str) -> bool {
    name.len() <= limits::CONTRACT_NAME_BYTES && name.split('.').all(is_identifier)
}

/// Whether the name of a contract is one of gRPC's and protobuf's own, such as `grpc.health.v1.Health`. They belong to no
/// service.
pub fn is_grpcs_own(contract: &str) -> bool {
    contract.starts_with("grpc.") || contract.starts_with("google.")
}

/// The candidate that is most similar to `asked`, if any is similar enough. Names longer than
/// [`limits::HINT_NAME_BYTES`] never are. Only the first [`limits::HINT_CANDIDATES`] candidates are compared: if there
/// may be more, put the most likely ones first, or use [`closest_of_sorted`].
pub fn closest<'a>(asked: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let is_short = |name: &str| name.len() <= limits::HINT_NAME_BYTES;
    if !is_short(asked) {
        return None;
    }
    let asked = asked.to_ascii_lowercase();
    candidates
        .into_iter()
        .take(limits::HINT_CANDIDATES)
        .filter(|c| is_short(c))
        .map(|c| (strsim::jaro_winkler(&asked, &c.to_ascii_lowercase()), c))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, c)| c)
}

/// Like [`closest`], for any number of candidates that are sorted by name: those near the place of `asked` are
/// compared.
pub fn closest_of_sorted<'a, T>(asked: &str, candidates: &'a [T], name: impl Fn(&T) -> &str) -> Option<&'a str> {
    let each_way = limits::HINT_CANDIDATES / 2;
    let place = candidates.partition_point(|candidate| name(candidate) < asked);
    let near = &candidates[place.saturating_sub(each_way)..candidates.len().min(place.saturating_add(each_way))];
    closest(asked, near.iter().map(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_names_a_service_only_in_the_meshs_forms() {
        let of = |a: &str| ServiceName::from_authority(a, "shop").map(|s| s.to_string());
        for a in [
            "users",
            "users:8080",
            "users.shop",
            "users.shop.svc",
            "users.shop.svc.cluster.local:80",
            "users.",
            "USERS.Shop",
        ] {
            assert_eq!(of(a).as_deref(), Some("users.shop"), "{a}");
        }
        assert_eq!(of("users.other").as_deref(), Some("users.other"));
        for a in ["127.0.0.1:15001", "[::1]:15001", "localhost:15001", "api.example.com", "users.shop.pod", "", "a_b"] {
            assert_eq!(of(a), None, "{a}");
        }
    }

    #[test]
    fn the_closest_name_is_similar_or_none() {
        let known = ["users.shop", "orders.shop"];
        assert_eq!(closest("usrs.shop", known), Some("users.shop"));
        assert_eq!(closest("zzz", known), None);
        let long = "x".repeat(limits::HINT_NAME_BYTES + 1);
        assert_eq!(closest(&long, [long.as_str()]), None, "comparing long names takes too long");
    }

    #[test]
    fn only_a_few_of_many_names_are_compared() {
        let names: Vec<String> = (0..100_000).map(|number| format!("shop.v1.Service{number:06}")).collect();
        let mut compared = 0;
        let counted = names.iter().map(|name| {
            compared += 1;
            name.as_str()
        });
        assert!(closest("shop.v1.Service000001x", counted).is_some());
        assert_eq!(compared, limits::HINT_CANDIDATES);
        for number in [0, 50_000, 99_999] {
            let asked = format!("{}x", names[number]);
            assert_eq!(closest_of_sorted(&asked, &names, |name| name), Some(&*names[number]));
        }
        assert_eq!(closest_of_sorted("x", &[] as &[String], |name| name), None);
    }

    #[test]
    fn a_peers_text_is_cut_before_it_is_shown() {
        assert_eq!(shown("users"), "users");
        assert_eq!(shown("a\nb"), "a\\nb");
        assert_eq!(shown("\u{9b}2J\u{202e}\u{2028}"), "\\u{9b}2J\\u{202e}\\u{2028}");
        let long = shown(&"é".repeat(1_000_000));
        assert_eq!(long.chars().count(), SHOWN_CHARS + 1);
        assert!(long.ends_with('…'));
        let NameError::Label(label) = ServiceName::new(&"x".repeat(1_000_000), "shop").unwrap_err() else { panic!() };
        assert!(label.len() < 200, "{label}");
    }

    #[test]
    fn a_contract_is_the_full_name_of_a_protobuf_service() {
        for good in ["Users", "shop.users.v1.Users", "_a.b_1"] {
            assert!(is_contract_name(good), "{good}");
        }
        let long = "x".repeat(limits::CONTRACT_NAME_BYTES + 1);
        for bad in ["", ".", "a.", ".a", "1a", "a b", "a/b", "10.0.0.1:80", "é", long.as_str()] {
            assert!(!is_contract_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_service_name_is_two_labels() {
        let users = ServiceName::parse("users.shop").unwrap();
        assert_eq!((users.name(), users.namespace()), ("users", "shop"));
        assert!(ServiceName::parse("users").is_err());
        assert!(ServiceName::parse("users.shop.svc").is_err());
        assert!(ServiceName::new("-x", "shop").is_err());
    }
}
