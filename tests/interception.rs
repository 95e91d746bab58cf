//! Programs that know nothing of Weft, on hosts of their own, whose packet filter redirects connections to a sidecar.

use std::{io::ErrorKind, net::SocketAddr, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use weft_tests::{Host, Net, binary, channel_to, metric, probe, skip, until};

const LIMIT: Duration = Duration::from_secs(60);

/// The hosts of the net.
const CLIENT: usize = 1;
const SERVER: usize = 2;
const OUTSIDE: usize = 3;

#[test]
fn redirected_programs_use_the_mesh_without_a_change() {
    if let Err(why) = Net::is_possible() {
        return skip(&why);
    }
    let net = Net::of(4);
    start(&net);
    let client = net.host(CLIENT);
    client.redirect(&["--exclude-outbound-ports", "7001"]);
    // On the server, only incoming connections are redirected.
    net.host(SERVER).redirect(&["--no-outbound"]);

    services_are_found_by_their_addresses(&client);
    rules_hold_for_redirected_connections(&net, &client);
    connections_to_outside_are_passed_through(&client);
    only_a_sidecar_is_accepted(&net.host(OUTSIDE), &client);
    weft_redirect_changes_only_its_own_table(&client);
    iptables_works_as_well(&client);
    unknown_addresses_get_no_plain_text(&net, &client);
    connections_to_outside_can_be_denied(&net, &client);
}

/// Starts a control plane, the services and a sidecar beside each.
fn start(net: &Net) {
    net.start_control();
    let server = net.host(SERVER);
    for (place, (name, port, protocol, virtual_address)) in [
        ("plain", 8080, "http1", "10.96.0.10:80"),
        ("probe", 9000, "grpc", "10.96.0.20:9000"),
        ("db", 9100, "tcp", "10.96.0.30:5432"),
    ]
    .into_iter()
    .enumerate()
    {
        let virtual_addresses = format!("{virtual_address},[fd77::2]:{port}");
        net.start_service(&server, place as u16, name, port, protocol, &["--virtual-address", &virtual_addresses]);
    }
    start_client(net, "allow");
    let echo = "import socketserver as s\nclass H(s.BaseRequestHandler):\n def handle(self):\n  while True:\n   d=self.request.recv(65536)\n   if not d: break\n   self.request.sendall(d.upper())\ns.ThreadingTCPServer.allow_reuse_address=True\ns.ThreadingTCPServer(('0.0.0.0',PORT),H).serve_forever()";
    for port in ["7000", "7001", "7002"] {
        net.host(OUTSIDE).start(port, Path::new("python3"), &["-c", &echo.replace("PORT", port)], &[]);
    }
    for port in [7000, 7001, 7002] {
        let listens = || net.host(OUTSIDE).within(move || TcpStream::connect(("127.0.0.1", port))).is_ok();
        until("the program outside listens", listens);
    }
    // Until the control plane knows the endpoints, a sidecar cannot tell that they are in the mesh.
    until("all endpoints are known", || net.log().matches(" joined service=").count() >= 3);
}

fn start_client(net: &Net, outside: &str) {
    let host = net.host(CLIENT);
    net.start_sidecar(&host, "client", &["--intercept", "--outside", outside]);
}

/// Sends bytes. Returns what comes back up to `end`.
async fn ask(to: &str, bytes: &'static [u8], end: &'static [u8]) -> std::io::Result<Vec<u8>> {
    let to: SocketAddr = to.parse().expect("an address");
    let asking = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(bytes).await?;
        let mut heard = Vec::new();
        while !heard.windows(end.len().max(1)).any(|seen| seen == end) {
            if stream.read_buf(&mut heard).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(heard)
    };
    timeout(LIMIT, asking).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

const GET: &[u8] = b"GET /a HTTP/1.1\r\nhost: whatever.example\r\n\r\n";

fn services_are_found_by_their_addresses(client: &Host) {
    // At a virtual address, at the program's own, and over IPv6. The service sees the caller, so the mesh carried it.
    for to in ["10.96.0.10:80", "10.77.0.2:8080", "[fd77::2]:8080"] {
        let heard = client.within(move || ask(to, GET, b"sa/client")).unwrap_or_else(|e| panic!("{to}: {e}"));
        let text = String::from_utf8_lossy(&heard).into_owned();
        assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("x-forwarded-client-cert: "), "{to}: {text}");
    }
    for to in ["http://10.96.0.20:9000", "http://10.77.0.2:9000"] {
        let answer = client.within(move || async move { probe(&channel_to(to), "Say", &[("x-do", "headers")]).await });
        let text = answer.expect("an answer").into_inner().text;
        assert!(text.contains("sa/client"), "{to}: {text}");
    }
    // The server speaks first: the sidecar waits for no bytes of the client.
    for to in ["10.96.0.30:5432", "10.77.0.2:9100"] {
        let heard = client.within(move || ask(to, b"", b"220 ready\r\n"));
        heard.unwrap_or_else(|e| panic!("{to}: {e}"));
        let heard = client.within(move || ask(to, b"echo\nhello", b"hello"));
        heard.unwrap_or_else(|e| panic!("{to}: {e}"));
    }
    // Bytes that are not HTTP are refused for a service of HTTP: they could contain a request with a forged caller.
    for to in ["10.77.0.2:8080", "10.77.0.2:9000"] {
        let refused = client.within(move || ask(to, b"\x16\x03\x01", b"x")).expect_err("it is refused");
        assert_eq!(refused.kind(), ErrorKind::ConnectionReset, "{refused}");
    }
    until("both are counted", || counted(client, "weft_detection_refused_total") == 2.0);
    until("the bytes of others are counted", || counted(client, "weft_tunnel_sent_bytes_total") >= 10.0);
}

/// The client is known by its sidecar's certificate, as if it had called the sidecar itself.
fn rules_hold_for_redirected_connections(net: &Net, client: &Host) {
    let (web, tcp) = ("10.96.0.10:80", "10.96.0.30:5432");
    // Whatever the answer is, the connection ends after it.
    const ONE: &[u8] = b"GET /a HTTP/1.1\r\nhost: whatever.example\r\nconnection: close\r\n\r\n";
    let refuses = |to: &'static str| client.within(move || ask(to, ONE, b"HTTP/1.1 403 ")).is_ok();
    let greets = || client.within(move || ask(tcp, b"", b"220 ready\r\n")).is_ok();
    net.set_access("access: deny\nnamespace: shop\nservices: { db: nobody }\n");
    until("the default denies what no rule allows", || refuses(web));
    until("a connection that may not be made ends", || !greets());
    let says = client.within(move || async move { probe(&channel_to("http://10.96.0.20:9000"), "Say", &[]).await });
    assert_eq!(says.expect_err("it is denied").code(), tonic::Code::PermissionDenied);
    net.set_access("access: dney\n");
    until("a mistake is named with its place", || net.log().contains("access.yaml:1: access: found the text"));
    assert!(refuses(web) && !greets(), "it changes nothing");
    net.set_access("access: deny\nnamespace: shop\nservices: { plain: [client], db: ['*.shop'], probe: any }\n");
    until("rules let it in", || greets() && client.within(move || ask(web, ONE, b"sa/client")).is_ok());
    net.set_access("{}\n");
    let says = || client.within(|| async { probe(&channel_to("http://10.96.0.20:9000"), "Say", &[]).await.is_ok() });
    until("without rules every member may call", says);
}

fn counted(host: &Host, name: &'static str) -> f64 {
    host.within(move || metric(15_020, name, ""))
}

fn connections_to_outside_are_passed_through(client: &Host) {
    // Until it knows all of the mesh, the control plane calls no address outside.
    until("the address counts as outside", || client.within(|| ask("10.77.0.3:7000", b"hello", b"HELLO")).is_ok());
    let before = counted(client, "weft_outside_connections_total");
    for _ in 0..3 {
        let heard = client.within(|| ask("10.77.0.3:7000", b"hello", b"HELLO")).expect("it is passed through");
        assert_eq!(heard, b"HELLO");
    }
    assert_eq!(counted(client, "weft_outside_connections_total"), before + 3.0);
    until("what was sent is counted", || counted(client, "weft_outside_sent_bytes_total") >= 20.0);
    until("what came back is counted", || counted(client, "weft_outside_received_bytes_total") >= 20.0);
    client.within(|| ask("10.77.0.3:7001", b"hello", b"HELLO")).expect("an excluded port is reached");
    assert_eq!(counted(client, "weft_outside_connections_total"), before + 3.0, "not through the sidecar");
    for leaves_out in [["--exclude-outbound-ranges", "10.77.0.3/32"], ["--include-outbound-ranges", "10.96.0.0/16"]] {
        client.redirect(&leaves_out);
        client.within(|| ask("10.77.0.3:7000", b"hello", b"HELLO")).expect("it is reached");
        client.within(|| ask("10.96.0.10:80", GET, b"sa/client")).expect("the mesh is reached, too");
        assert_eq!(counted(client, "weft_outside_connections_total"), before + 3.0, "not through the sidecar");
    }
    client.redirect(&["--exclude-outbound-ports", "7001"]);
    let refused = client.within(|| ask("10.77.0.3:7999", b"hello", b"HELLO")).expect_err("nothing listens there");
    assert!(matches!(refused.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof), "{refused}");
}

fn only_a_sidecar_is_accepted(outside: &Host, client: &Host) {
    let refused = outside.within(|| ask("10.77.0.2:8080", GET, b"HTTP/1.1 200")).expect_err("it is not a sidecar");
    assert!(matches!(refused.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof), "{refused}");
    client.within(|| ask("10.77.0.2:8080", GET, b"HTTP/1.1 200")).expect("a sidecar is accepted");
}

fn weft_redirect_changes_only_its_own_table(client: &Host) {
    let weft = binary("weft").display().to_string();
    client.output("nft", &["add", "table", "inet", "theirs"]);
    let list = || client.output("nft", &["list", "ruleset"]);
    client.redirect(&["--exclude-outbound-ports", "7001"]);
    let before = list();
    client.redirect(&["--exclude-outbound-ports", "7001"]);
    assert_eq!(list(), before, "a second run changes nothing");
    let shown = client.output(&weft, &["redirect", "--uid", "1", "--print"]);
    assert!(shown.contains("redirect to :15001"), "{shown}");
    assert_eq!(list(), before, "`--print` changes nothing");
    client.redirect(&["--exclude-outbound-ports", "7001,7000"]);
    assert!(list().contains("7000"), "another run replaces the rules of the first");
    client.output(&weft, &["redirect", "--remove"]);
    let after = list();
    assert!(!after.contains("weft") && after.contains("table inet theirs"), "{after}");
    client.output(&weft, &["redirect", "--remove"]);
    let before = counted(client, "weft_outside_connections_total");
    client.within(|| ask("10.77.0.3:7000", b"hello", b"HELLO")).expect("it is reached without the sidecar");
    assert_eq!(counted(client, "weft_outside_connections_total"), before);
}

fn iptables_works_as_well(client: &Host) {
    let weft = binary("weft").display().to_string();
    client.output("iptables", &["-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "1", "-j", "ACCEPT"]);
    let list = || {
        let rules = client.output("iptables-save", &["-t", "nat"]);
        rules
            .lines()
            .filter(|line| line.starts_with(['-', ':']) && !line.contains('['))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    client.redirect(&["--backend", "iptables"]);
    let once = list();
    client.redirect(&["--backend", "iptables"]);
    assert_eq!(list(), once, "a second run changes nothing");
    for to in ["10.96.0.10:80", "[fd77::2]:8080"] {
        let heard = client.within(move || ask(to, GET, b"sa/client"));
        heard.unwrap_or_else(|e| panic!("{to}: {e}"));
    }
    client.output(&weft, &["redirect", "--remove", "--backend", "iptables"]);
    let after = list();
    assert!(after.iter().all(|line| !line.contains("WEFT")), "{after:?}");
    assert!(after.iter().any(|line| line.contains("--dport 1 ")), "others' rules stay: {after:?}");
}

/// An address is outside the mesh only if the control plane has said so.
fn unknown_addresses_get_no_plain_text(net: &Net, client: &Host) {
    client.redirect(&["--exclude-outbound-ports", "7001"]);
    client.within(|| ask("10.77.0.3:7000", b"hello", b"HELLO")).expect("it counts as outside");
    let passed = counted(client, "weft_outside_connections_total");
    let unknown = counted(client, "weft_unknown_refused_total");
    net.host(0).stop("control");
    let refused =
        client.within(|| ask("10.77.0.3:7002", b"hello", b"HELLO")).expect_err("whether it is outside is unknown");
    assert_eq!(refused.kind(), ErrorKind::ConnectionReset, "{refused}");
    assert_eq!(counted(client, "weft_unknown_refused_total"), unknown + 1.0);
    assert_eq!(counted(client, "weft_outside_connections_total"), passed, "nothing was sent there");
    assert!(net.log().contains("to 10.77.0.3:7002 refused: a service of the mesh may be there"), "the log says why");
    // Connections to known addresses go on: to services, and to what counts as outside.
    client.within(|| ask("10.96.0.10:80", GET, b"sa/client")).expect("the mesh is reached");
    client.within(|| ask("10.77.0.3:7000", b"hello", b"HELLO")).expect("it is passed through");
    net.start_control();
    until("the address counts as outside once the control plane knows all of the mesh", || {
        client.within(|| ask("10.77.0.3:7002", b"hello", b"HELLO")).is_ok()
    });
}

fn connections_to_outside_can_be_denied(net: &Net, client: &Host) {
    client.stop("client-sidecar");
    start_client(net, "deny");
    client.redirect(&[]);
    let refused = client.within(|| ask("10.77.0.3:7000", b"hello", b"HELLO")).expect_err("it is denied");
    assert_eq!(refused.kind(), ErrorKind::ConnectionReset, "{refused}");
    assert_eq!(counted(client, "weft_outside_refused_total"), 1.0);
    assert!(net.log().contains("no service of the mesh is at 10.77.0.3:7000"), "the log says where to");
    client.within(|| ask("10.96.0.10:80", GET, b"HTTP/1.1 200")).expect("the mesh is reached all the same");
}
