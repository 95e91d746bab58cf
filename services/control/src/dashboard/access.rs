//! Access checks of the dashboard.
//!
//! There is no log-in, so another web site must not use a visitor's browser to read the dashboard. The owner of a site
//! can point its name at this port (DNS rebinding); then the browser takes the dashboard for a part of that site. Such
//! a request carries the site's name in `Host`, so only names that nobody else can own are allowed.

use std::net::IpAddr;

use axum::http::{HeaderMap, Uri, header};
use weft_mesh::names::shown;

/// What is allowed in addition to the defaults.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Host names of the dashboard, in addition to `localhost` and IP addresses.
    pub hosts: Vec<String>,
    /// Whether spans are taken from other hosts.
    pub remote_spans: bool,
}

impl Access {
    /// Whether spans are taken from this address.
    pub(super) fn takes_spans(&self, from: IpAddr) -> bool {
        self.remote_spans || from.to_canonical().is_loopback()
    }

    /// Checks the host names in a request.
    ///
    /// # Errors
    /// The name that is not allowed.
    pub(super) fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), String> {
        let named = headers.get_all(header::HOST).iter().map(|value| value.to_str().unwrap_or("?"));
        // HTTP/2 has `:authority` instead of `Host`.
        let named = named.chain(uri.authority().map(|authority| authority.as_str()));
        match named.map(host_of).find(|host| !self.is_own(host)) {
            Some(other) => Err(shown(other)),
            None => Ok(()),
        }
    }

    fn is_own(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        let is_local = host.eq_ignore_ascii_case("localhost");
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        // An address is safe: nobody can point it elsewhere.
        is_local
            || address.parse::<IpAddr>().is_ok()
            || self.hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host))
    }
}

/// A host without its port.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_allowed(access: &Access, host: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        access.check_host(&Uri::from_static("/"), &headers).is_ok()
    }

    #[test]
    fn names_that_others_can_point_here_are_refused() {
        let access = Access { hosts: vec!["weft.example".into()], remote_spans: false };
        for good in [
            "localhost",
            "localhost:15080",
            "LocalHost.",
            "127.0.0.1:15080",
            "10.0.0.1",
            "[::1]:15080",
            "weft.example:80",
        ] {
            assert!(is_allowed(&access, good), "{good}");
        }
        for bad in ["evil.example", "evil.example:15080", "localhost.evil.example", "127.0.0.1.evil.example", "", "?"] {
            assert!(!is_allowed(&access, bad), "{bad}");
        }
        let uri = Uri::from_static("http://evil.example:15080/traces");
        assert_eq!(access.check_host(&uri, &HeaderMap::new()), Err("evil.example".to_owned()));
        assert!(access.check_host(&Uri::from_static("/"), &HeaderMap::new()).is_ok(), "HTTP/1.0 requests need no host");
    }

    #[test]
    fn spans_come_from_this_host_unless_others_are_allowed() {
        let access = Access::default();
        assert!(access.takes_spans([127, 0, 0, 1].into()) && !access.takes_spans([10, 0, 0, 1].into()));
        assert!(Access { remote_spans: true, ..access }.takes_spans([10, 0, 0, 1].into()));
    }
}
