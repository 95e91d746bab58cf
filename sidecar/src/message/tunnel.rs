//! Tunnels and upgrades: how heads ask for them, and which services get them.

use weft_mesh::names::header;
use weft_wire::{Headers, Name, http1};

use crate::args::{AppProtocol, UpgradeName};

/// The method of a tunnel.
pub(crate) const CONNECT: &[u8] = b"CONNECT";

/// Whether a head asks for a plain tunnel: CONNECT without a `:protocol`.
pub(crate) fn is_tunnel(head: &Headers) -> bool {
    head.method() == Some(CONNECT) && head.protocol().is_none()
}

const TUNNEL: Name = Name::other(header::TUNNEL);

/// Marks a tunnel that this sidecar has made for a connection that is not HTTP. One that the caller asked for by
/// CONNECT gets no mark.
pub(crate) fn mark(head: &mut Headers, is_made_here: bool) {
    head.remove(TUNNEL);
    if is_made_here {
        head.append(TUNNEL, b"1");
    }
}

/// Whether a sidecar has made this tunnel, for a client that did not send CONNECT itself.
pub(crate) fn is_made_by_sidecar(head: &Headers) -> bool {
    head.get(TUNNEL).is_some()
}

/// Why a request by CONNECT must not go to a service that speaks `speaks`. `None` if it may.
///
/// Only the callee's sidecar says who calls, and it writes that into each head. It sees no heads within a tunnel: if
/// the service read HTTP there, each request would carry the identity that its caller writes. So
/// - a tunnel goes to a service that is declared to speak another protocol. For that service it is a connection;
/// - a service of HTTP/1.1 may answer CONNECT itself, as a forward proxy does. Its handler sees who calls in the head
///   of that request, and once it accepts, nothing else reads the bytes. But some servers hand CONNECT to any handler,
///   accept it, and go on to read requests from the connection. This can't be seen from outside, so a service that
///   answers CONNECT has to be declared (`answers_connect`). A tunnel that a sidecar has made does not go to that
///   handler either: its client asked for no tunnel;
/// - an upgrade is for the service to accept. Upgrades to a protocol that carries HTTP are refused here. Of the others,
///   the service gets those that it is declared to know ([`is_declared`]).
///
/// Both sidecars ask this, each with what it knows. The callee's check is the one that counts, as it trusts no caller.
pub(crate) fn refusal(
    head: &Headers,
    is_made_by_sidecar: bool,
    speaks: AppProtocol,
    answers_connect: bool,
) -> Option<&'static str> {
    if head.method() != Some(CONNECT) {
        return None;
    }
    match (head.protocol(), speaks) {
        (Some(protocol), _) if http1::is_http_within(protocol) => {
            Some("must not change to HTTP or TLS: within those its sidecar could not say who calls")
        }
        (Some(_), _) | (None, AppProtocol::Tcp) => None,
        (None, AppProtocol::Http1) if answers_connect && !is_made_by_sidecar => None,
        (None, _) => Some(
            "speaks HTTP, so no tunnel leads to it: within one its sidecar could not say who calls. Declare a service of \
             another protocol with `protocol: tcp`, and one of HTTP/1.1 that answers CONNECT itself with \
             `connect: true`",
        ),
    }
}

/// The one upgrade that every service of HTTP gets, declared or not.
const WEBSOCKET: &[u8] = b"websocket";

/// Whether a service is declared to know the protocol that a request by extended CONNECT asks for: WebSocket, or one of
/// `--upgrade`. After an upgrade to any other protocol the service may read HTTP from the connection: the sidecar can't
/// know what a name means to it.
pub(crate) fn is_declared(head: &Headers, upgrades: &[UpgradeName]) -> bool {
    let mut known = upgrades.iter().map(UpgradeName::as_bytes).chain([WEBSOCKET]);
    head.protocol().is_some_and(|protocol| known.any(|name| name.eq_ignore_ascii_case(protocol)))
}

/// Removes the upgrade from a request to a service of HTTP/1.1. The service gets the GET that carried it (RFC 9110,
/// section 7.8).
pub(crate) fn withhold_upgrade(head: &mut Headers) {
    head.remove(DECLINED);
    head.append(DECLINED, b"declined");
}

/// Whether an answer opens the tunnel.
pub(crate) fn is_accepted(head: &Headers) -> bool {
    head.status().is_some_and(|status| (200..300).contains(&status)) && head.get(DECLINED).is_none()
}

const DECLINED: Name = Name::other(http1::DECLINED);

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(protocol: Option<&str>) -> Headers {
        let mut head = Headers::new();
        head.set(Name::METHOD, CONNECT);
        head.set(Name::AUTHORITY, b"echo.shop:80");
        if let Some(protocol) = protocol {
            head.set(Name::PROTOCOL, protocol.as_bytes());
        }
        head
    }

    #[test]
    fn tunnels_go_to_services_that_do_not_speak_http() {
        use AppProtocol::{Grpc, Http1, Tcp};
        for (speaks, answers_connect, by_caller, by_sidecar) in [
            (Tcp, false, true, true),
            (Grpc, false, false, false),
            // HTTP/2 has a stream for each CONNECT, so `connect: true` changes nothing.
            (Grpc, true, false, false),
            (Http1, false, false, false),
            (Http1, true, true, false),
        ] {
            let is_taken = |is_made| refusal(&connect(None), is_made, speaks, answers_connect).is_none();
            assert_eq!((is_taken(false), is_taken(true)), (by_caller, by_sidecar), "{speaks:?} {answers_connect}");
        }
    }

    #[test]
    fn an_upgrade_to_http_or_tls_is_refused() {
        for speaks in [AppProtocol::Grpc, AppProtocol::Http1, AppProtocol::Tcp] {
            for protocol in ["h2c", "H2C", "h2", "HTTP", "h2c-16", "tls", "TLS-1.0"] {
                assert!(refusal(&connect(Some(protocol)), false, speaks, true).is_some(), "{protocol}");
            }
            for protocol in ["websocket", "chatter", "connect-udp", "tcp"] {
                assert!(refusal(&connect(Some(protocol)), false, speaks, false).is_none(), "{protocol}");
            }
        }
        for name in ["h2c", "HTTP", "TLS-1.0", "ssl", "", "a b", "a/1", "a,b"] {
            assert!(name.parse::<UpgradeName>().is_err(), "`{name}` can't be declared");
        }
        let declared = ["chatter".parse().unwrap()];
        for (protocol, by_default, by_declaration) in
            [("websocket", true, true), ("WebSocket", true, true), ("Chatter", false, true), ("x-http", false, false)]
        {
            let is_known = |upgrades| is_declared(&connect(Some(protocol)), upgrades);
            assert_eq!((is_known(&[]), is_known(&declared)), (by_default, by_declaration), "{protocol}");
        }
        assert!(!is_declared(&connect(None), &declared), "a plain CONNECT names no protocol");
        let mut get = Headers::new();
        get.set(Name::METHOD, b"GET");
        assert!(refusal(&get, false, AppProtocol::Grpc, false).is_none());
    }
}
