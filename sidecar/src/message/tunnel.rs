//! What heads say of tunnels and upgrades, and who is asked for them.

use weft_mesh::names::header;
use weft_wire::{Headers, Name, http1};

use crate::args::{AppProtocol, UpgradeName};

/// The method of a tunnel.
pub(crate) const CONNECT: &[u8] = b"CONNECT";

/// Whether a head asks for bytes as they are, and for no other protocol.
pub(crate) fn is_tunnel(head: &Headers) -> bool {
    head.method() == Some(CONNECT) && head.protocol().is_none()
}

const TUNNEL: Name = Name::other(header::TUNNEL);

/// Says of a tunnel whether this sidecar has made it, of a connection that is not HTTP, or its caller has asked for one
/// by CONNECT.
pub(crate) fn mark(head: &mut Headers, is_made_here: bool) {
    head.remove(TUNNEL);
    if is_made_here {
        head.append(TUNNEL, b"1");
    }
}

/// Whether a sidecar has made a tunnel of a connection whose client knows of no CONNECT.
pub(crate) fn is_made_by_sidecar(head: &Headers) -> bool {
    head.get(TUNNEL).is_some()
}

/// Says why a request by CONNECT does not go to a service that speaks this, if it does not.
///
/// Nobody but the callee's sidecar says who calls, and it says so in each head. Within a tunnel it sees no heads: what is
/// read as HTTP there would bear whatever identity its caller writes. So
/// - a tunnel goes to a service that is declared to speak another protocol, for which it is a connection;
/// - a service of HTTP/1.1 may answer CONNECT itself, as a forward proxy does. Its own handler has seen who calls, and has
///   the bytes for itself once it has accepted. But there are servers that hand CONNECT to any handler, accept it, and go on
///   to read requests from the connection. Whether a service is one of these can't be seen from outside, so it has to be
///   declared (`answers_connect`). A tunnel that a sidecar has made is not for that handler either: its client has asked
///   for none;
/// - an upgrade is the service's to accept, which then speaks that protocol. Those in which HTTP goes on are refused, and of
///   the others the service gets those that it is declared to know ([`is_declared`]).
///
/// Both sidecars ask, each by what it knows. The callee's is the one that counts, as it trusts no caller.
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
            Some("is not asked to change to HTTP or TLS: nobody would see who calls in it")
        }
        (Some(_), _) | (None, AppProtocol::Tcp) => None,
        (None, AppProtocol::Http1) if answers_connect && !is_made_by_sidecar => None,
        (None, _) => Some(
            "speaks HTTP, so no tunnel leads to it: nobody would see who calls in it. A service of another protocol is \
             declared with `protocol: tcp`, and one of HTTP/1.1 that answers CONNECT itself with `connect: true`",
        ),
    }
}

/// The protocol to which each service of HTTP may be asked to change.
const WEBSOCKET: &[u8] = b"websocket";

/// Whether a service is declared to know the protocol that a request by extended CONNECT asks for: `--upgrade`, besides
/// WebSocket. A service may read HTTP on from a connection that it has changed to any other, as nobody can tell what a name
/// means to it.
pub(crate) fn is_declared(head: &Headers, upgrades: &[UpgradeName]) -> bool {
    let mut known = upgrades.iter().map(UpgradeName::as_bytes).chain([WEBSOCKET]);
    head.protocol().is_some_and(|protocol| known.any(|name| name.eq_ignore_ascii_case(protocol)))
}

/// Takes the upgrade off a request to a service of HTTP/1.1, which gets it as the GET that it came with (RFC 9110, section
/// 7.8).
pub(crate) fn withhold_upgrade(head: &mut Headers) {
    head.remove(DECLINED);
    head.append(DECLINED, b"declined");
}

/// Whether an answer lets a tunnel begin.
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
    fn tunnels_lead_to_what_speaks_another_protocol_than_http() {
        use AppProtocol::{Grpc, Http1, Tcp};
        for (speaks, answers_connect, by_caller, by_sidecar) in [
            (Tcp, false, true, true),
            (Grpc, false, false, false),
            // Nothing that speaks HTTP/2 reads CONNECT without a stream of its own.
            (Grpc, true, false, false),
            (Http1, false, false, false),
            (Http1, true, true, false),
        ] {
            let is_taken = |is_made| refusal(&connect(None), is_made, speaks, answers_connect).is_none();
            assert_eq!((is_taken(false), is_taken(true)), (by_caller, by_sidecar), "{speaks:?} {answers_connect}");
        }
    }

    #[test]
    fn an_upgrade_to_http_or_tls_goes_nowhere() {
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
        assert!(!is_declared(&connect(None), &declared), "CONNECT is another matter");
        let mut get = Headers::new();
        get.set(Name::METHOD, b"GET");
        assert!(refusal(&get, false, AppProtocol::Grpc, false).is_none());
    }
}
