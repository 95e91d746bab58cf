//! Access control: only this host may use the admin port.
//!
//! A connection must come from one of the host's own addresses, wherever the port listens.
//!
//! A web page in a browser on this host can reach the port too. So a request must name a loopback address (against DNS
//! rebinding), and must not come from another site.

use axum::{
    extract::Request,
    http::{HeaderMap, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use weft_mesh::http_server::Ends;

use crate::message::site::is_loopback;

/// Whether both ends of a connection are on this host. A client that connects to an address of its own host has the
/// same address on both ends, and the kernel accepts neither that nor loopback from the network.
fn are_here(ends: &Ends) -> bool {
    let [local, peer] = [ends.local, ends.peer].map(|end| end.ip().to_canonical());
    peer.is_loopback() || peer == local
}

pub(super) async fn only_this_host(request: Request, next: Next) -> Response {
    let is_let_in = request.extensions().get::<Ends>().is_some_and(are_here)
        && is_addressed_to_this_host(request.uri(), request.headers())
        && is_from_this_host(request.headers())
        && (is_mere_look(&request) || is_from_no_other_site(request.headers()));
    if is_let_in {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "only for this host: use 127.0.0.1, [::1] or localhost as the address\n").into_response()
}

/// Checks `:authority` (HTTP/2) and `Host`.
fn is_addressed_to_this_host(uri: &Uri, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    let authorities = [uri.authority().map(http::uri::Authority::as_str), host];
    authorities.iter().any(Option::is_some) && authorities.into_iter().flatten().all(is_loopback)
}

/// Checks `Origin`: a browser sends the site that a request comes from; other clients send none.
fn is_from_this_host(headers: &HeaderMap) -> bool {
    headers.get_all(header::ORIGIN).iter().all(|origin| {
        let origin = origin.to_str().unwrap_or_default();
        origin.strip_prefix("http://").is_some_and(is_loopback)
    })
}

/// Whether another site may make a browser send this request: it only reads, and the other site does not get the
/// answer.
fn is_mere_look(request: &Request) -> bool {
    request.method().is_safe() && !request.uri().path().starts_with("/profile")
}

/// Checks `Sec-Fetch-Site`: newer browsers send it with each request, even without `Origin` (Fetch Metadata). Another
/// port of this host counts as another site here.
fn is_from_no_other_site(headers: &HeaderMap) -> bool {
    headers.get_all("sec-fetch-site").iter().all(|site| site == "same-origin" || site == "none")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connections_from_this_host_are_served() {
        for (local, peer, is_served) in [
            ("127.0.0.1:15000", "127.0.0.1:40000", true),
            ("[::1]:15000", "[::1]:40000", true),
            ("[::ffff:127.0.0.1]:15000", "[::ffff:127.0.0.1]:40000", true),
            ("10.0.0.1:15000", "10.0.0.1:40000", true),
            ("10.0.0.1:15000", "10.0.0.2:40000", false),
            ("[2001:db8::1]:15000", "[2001:db8::2]:40000", false),
        ] {
            let ends = Ends { local: local.parse().unwrap(), peer: peer.parse().unwrap() };
            assert_eq!(are_here(&ends), is_served, "{peer} to {local}");
        }
    }

    #[test]
    fn only_loopback_names_are_served() {
        let mut headers = HeaderMap::new();
        let uri: Uri = "/".parse().unwrap();
        assert!(!is_addressed_to_this_host(&uri, &headers), "a request without any name");
        for (host, is_served) in [
            ("127.0.0.1:15000", true),
            ("localhost:15000", true),
            ("[::1]:15000", true),
            ("127.0.0.1.evil.example:15000", false),
            ("evil.example", false),
            ("10.0.0.1:15000", false),
        ] {
            headers.insert(header::HOST, host.parse().unwrap());
            assert_eq!(is_addressed_to_this_host(&uri, &headers), is_served, "{host}");
        }
        let rebound: Uri = "http://evil.example/".parse().unwrap();
        headers.insert(header::HOST, "localhost".parse().unwrap());
        assert!(!is_addressed_to_this_host(&rebound, &headers));
    }

    #[test]
    fn a_page_from_another_port_can_change_nothing() {
        let mut headers = HeaderMap::new();
        assert!(is_from_no_other_site(&headers), "no browser");
        for (site, is_served) in [("same-origin", true), ("none", true), ("same-site", false), ("cross-site", false)] {
            headers.insert("sec-fetch-site", site.parse().unwrap());
            assert_eq!(is_from_no_other_site(&headers), is_served, "{site}");
        }
        let request = |method: &str, path: &str| {
            Request::builder().method(method).uri(path).body(axum::body::Body::empty()).unwrap()
        };
        assert!(is_mere_look(&request("GET", "/")) && !is_mere_look(&request("POST", "/log")));
        assert!(!is_mere_look(&request("GET", "/profile/cpu")), "a profile costs CPU time");
    }

    #[test]
    fn other_sites_are_refused() {
        let mut headers = HeaderMap::new();
        assert!(is_from_this_host(&headers));
        for (origin, is_served) in [
            ("http://127.0.0.1:15000", true),
            ("http://localhost", true),
            ("https://evil.example", false),
            ("http://localhost.evil.example", false),
            ("null", false),
        ] {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
            assert_eq!(is_from_this_host(&headers), is_served, "{origin}");
        }
    }
}
