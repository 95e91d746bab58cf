//! What web pages may send to a port that leads to one service, and to the outbound port of a person's sidecar. A page
//! that a browser on this host shows can reach such a port, although neither it nor its site may call a service:
//!
//! - **DNS rebinding**: its site's own name leads to this host. For the browser it is the page's own site, so the page
//!   reads the answers. Such a request names the site as its authority: [`is_of_port`], [`is_of_mesh`].
//! - **A request to another site** (CSRF): the page cannot read the answer, but the request has its effect. Browsers say
//!   so in `Origin` and `Sec-Fetch-Site` (Fetch, section 3.2; Fetch Metadata, section 2.4), which no page can forge:
//!   [`is_foreign`].

use std::net::IpAddr;

use weft_mesh::names::ServiceName;
use weft_wire::{Headers, Name};

/// Whether a request with this authority may come in on a port that leads to `service`. Its host must be one that the
/// owner of a web site cannot have: an IP address, a name without dots such as `localhost`, or the service's own name.
pub(crate) fn is_of_port(authority: &str, service: &ServiceName) -> bool {
    let host = host(authority);
    !host.contains('.')
        || host.parse::<IpAddr>().is_ok()
        || ServiceName::from_authority(host, service.namespace()).is_some_and(|named| named == *service)
}

/// Whether a request with this authority, and this value of `x-weft-service`, may come in on a port that leads to every
/// service. An authority that the owner of a web site can have leads only to the service of exactly that name.
pub(crate) fn is_of_mesh(authority: &str, named: Option<&[u8]>, namespace: &str) -> bool {
    let host = host(authority);
    if !host.contains('.') || host.parse::<IpAddr>().is_ok() {
        return true;
    }
    // As the target of the call is found.
    let Some(service) = ServiceName::from_authority(authority, namespace) else { return false };
    named.is_none_or(|named| {
        let named = std::str::from_utf8(named).ok().and_then(|named| ServiceName::parse_in(named, namespace).ok());
        named.is_some_and(|named| named == service)
    })
}

const ORIGIN: Name = Name::other("origin");
const FETCH_SITE: Name = Name::other("sec-fetch-site");

/// Whether [`is_foreign`] may be true: a quick check, for each call.
#[inline]
pub(crate) fn may_be_foreign(head: &Headers) -> bool {
    // Both names are among the less common ones, which share a bit.
    head.may_have(ORIGIN) && (head.get(ORIGIN).is_some() || head.get(FETCH_SITE).is_some())
}

/// Whether a web page of another site sent this request, and it is more than a read. A page of this host, at whatever
/// port, is of no other site, and neither is one at the host that the request names.
pub(crate) fn is_foreign(head: &Headers, authority: &str) -> bool {
    if is_read(head) || !may_be_foreign(head) {
        return false;
    }
    let is_near = |origin: &[u8]| {
        // An opaque origin is `null`.
        let site = std::str::from_utf8(origin).ok().and_then(|origin| Some(origin.split_once("://")?.1));
        site.is_some_and(|site| is_loopback(site) || host(site).eq_ignore_ascii_case(host(authority)))
    };
    match head.get(FETCH_SITE) {
        Some(b"same-origin" | b"same-site" | b"none") => false,
        // For the browser, `localhost` and `127.0.0.1` are two sites.
        Some(_) => !head.all(ORIGIN).any(is_near),
        // Older browsers, and those that take the port's address for an unsafe one, say only this.
        None => !head.all(ORIGIN).all(is_near),
    }
}

/// Whether it only reads (RFC 9110, section 9.2.1). An upgrade to WebSocket does not: a page of any site may make one, and
/// read what comes.
fn is_read(head: &Headers) -> bool {
    matches!(head.method(), Some(b"GET" | b"HEAD" | b"OPTIONS"))
}

/// Whether a host, with or without a port, is this host's loopback address.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let host = host(authority);
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The host of an authority: without its port, the brackets of an IPv6 address, and the dot at the end of a full name.
fn host(authority: &str) -> &str {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    inner.unwrap_or_else(|| host.strip_suffix('.').unwrap_or(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_takes_no_name_that_a_web_site_can_have() {
        let etcd = ServiceName::new("etcd", "infra").unwrap();
        for taken in [
            "127.0.0.1:2379",
            "10.0.0.7",
            "[::1]:2379",
            "[2001:db8::1]",
            "localhost:2379",
            "LOCALHOST",
            "localhost.",
            "devbox:80",
            "etcd",
            "ETCD.Infra:80",
            "etcd.infra.svc",
            "etcd.infra.svc.cluster.local.:2379",
            "",
        ] {
            assert!(is_of_port(taken, &etcd), "{taken}");
        }
        for refused in [
            "evil.example:2379",
            "evil.example.",
            "127.0.0.1.evil.example",
            "etcd.evil.example:2379",
            "etcd.infra.evil",
            "etcd.other:2379",
            "users.infra",
            "infra.etcd",
            "localhost.evil",
            "evil.example:",
            "[evil.example]",
            "[::1].evil.example",
        ] {
            assert!(!is_of_port(refused, &etcd), "{refused}");
        }
    }

    #[test]
    fn a_name_that_a_web_site_can_have_leads_to_the_service_of_that_name_only() {
        for (authority, named, is_taken) in [
            ("127.0.0.1:15001", None, true),
            ("localhost:15001", Some("users"), true),
            ("[::1]:15001", Some("users.shop"), true),
            ("users", Some("orders"), true),
            ("users.shop:80", None, true),
            ("users.shop.svc.cluster.local", None, true),
            ("users.shop", Some("users"), true),
            ("users.shop", Some("orders"), false),
            ("users.shop", Some("\u{fffd}"), false),
            ("rebind.evil.example:15001", None, false),
            ("rebind.evil.example:15001", Some("users"), false),
            ("127.0.0.1.evil.example", None, false),
            ("evil.example:", None, false),
        ] {
            let is_of_mesh = is_of_mesh(authority, named.map(str::as_bytes), "shop");
            assert_eq!(is_of_mesh, is_taken, "{authority} {named:?}");
        }
    }

    /// Whether a request with these fields, to 127.0.0.1:2379, is foreign.
    fn judged(method: &str, fields: &[(&str, &str)]) -> bool {
        let mut head = Headers::new();
        head.set(Name::METHOD, method.as_bytes());
        for (name, value) in fields {
            head.append_bytes(name.as_bytes(), value.as_bytes());
        }
        is_foreign(&head, "127.0.0.1:2379")
    }

    #[test]
    fn a_page_of_another_site_only_reads() {
        let evil = &[("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")];
        for method in ["POST", "PUT", "DELETE", "PATCH", "CONNECT", "X"] {
            assert!(judged(method, evil), "{method}");
            assert!(judged(method, &evil[..1]), "an older browser");
            assert!(judged(method, &evil[1..]), "no origin");
            assert!(!judged(method, &[("user-agent", "curl"), ("x-origin", "evil.example")]), "no browser");
        }
        for method in ["GET", "HEAD", "OPTIONS"] {
            assert!(!judged(method, evil), "{method}");
        }
    }

    #[test]
    fn a_page_of_this_host_may_send_anything() {
        for (origin, site, is_refused) in [
            ("http://127.0.0.1:2379", Some("same-origin"), false),
            ("http://127.0.0.1:2379", None, false),
            ("http://127.0.0.1:5173", Some("same-site"), false),
            ("http://localhost:5173", Some("cross-site"), false),
            ("http://[::1]:5173", None, false),
            // By its form, with `Referrer-Policy: no-referrer`.
            ("null", Some("same-origin"), false),
            // A reverse proxy before the port passes on what the browser said of its own site.
            ("https://shop.example", Some("same-origin"), false),
            ("https://api.shop.example", Some("same-site"), false),
            ("null", Some("cross-site"), true),
            ("null", None, true),
            ("", None, true),
            ("http://127.0.0.1.evil.example", None, true),
            ("http://10.0.0.1", Some("cross-site"), true),
            ("https://shop.example", Some("made-up"), true),
        ] {
            let fields = [("origin", origin), ("sec-fetch-site", site.unwrap_or_default())];
            let count = 1 + usize::from(site.is_some());
            assert_eq!(judged("POST", &fields[..count]), is_refused, "{origin} {site:?}");
        }
        assert!(judged("POST", &[("origin", "http://localhost"), ("origin", "https://evil.example")]), "one of two");
    }

    #[test]
    fn a_page_at_the_host_that_the_request_names_is_of_the_same_site() {
        let mut head = Headers::new();
        head.set(Name::METHOD, b"POST");
        head.append(ORIGIN, b"http://Devbox:8080");
        assert!(!is_foreign(&head, "devbox:8080"));
        assert!(is_foreign(&head, "other:8080"));
    }
}
