//! A port that leads to one service (`--forward`): clients that know nothing of the mesh, and cannot name the service,
//! reach one that speaks gRPC, HTTP/1.1 or something else.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};
use tonic::Code;
use weft_control::{ca::Ca, join_token};
use weft_mesh::identity::SpiffeId;
use weft_tests::{Bed, binary, channel, eventually, get, metric, probe, probe_service, raw};

const LIMIT: Duration = Duration::from_secs(60);

/// A sidecar beside those of the mesh, killed with the test.
struct Sidecar {
    process: Child,
    metrics: u16,
    /// The ports that lead to each service, in their order.
    forwards: Vec<u16>,
}

impl Sidecar {
    async fn start(bed: &Bed, services: &[&str]) -> Self {
        let (control, file) = (bed.state_dir().join("control"), bed.dir().join("guest-token"));
        let domain = "weft.local".parse().expect("a trust domain");
        let ca = Ca::open_or_create(&control, &domain).expect("the mesh has a CA");
        let id: SpiffeId = "spiffe://weft.local/ns/shop/sa/guest".parse().expect("an id");
        let token = join_token::issue(&ca, &id, LIMIT * 60).expect("a token");
        std::fs::write(&file, token).expect("the folder can be written");
        let mut command = Command::new(binary("weft-sidecar"));
        let any = "127.0.0.1:0";
        command.args(["--namespace", "shop", "--outbound", any, "--admin", any, "--metrics", any]);
        command.args(["--control-plane", &format!("https://127.0.0.1:{}", bed.control())]);
        command.arg("--trust-bundle").arg(control.join("bundle.pem")).arg("--join-token-file").arg(file);
        for service in services {
            command.args(["--forward", &format!("127.0.0.1:0={service}")]);
        }
        let mut process = command.stderr(Stdio::piped()).spawn().expect("the sidecar starts");
        let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines();
        let line = lines.find_map(|line| line.ok().filter(|line| line.contains("the sidecar runs"))).expect("it runs");
        // Its later lines are dropped: a full pipe must not stop it.
        std::thread::spawn(move || lines.for_each(drop));
        let [admin, metrics] = ["admin", "metrics"].map(|of| port(&line, &format!("{of}=127.0.0.1:")));
        let mut sidecar = Self { process, metrics, forwards: Vec::new() };
        eventually("the sidecar is ready", LIMIT, async || get(metrics, "/readyz").await.0 == 200).await;
        // The configuration shows the ports that the kernel picked.
        let state = bed.json(admin, "/state").await;
        let settings = state["configuration"].as_array().expect("a list");
        let forward = settings.iter().find(|setting| setting["name"] == "--forward").expect("each flag is there");
        let forwards = forward["value"].as_str().expect("text").split(',');
        sidecar.forwards = forwards.map(|forward| port(forward, "127.0.0.1:")).collect();
        assert!(sidecar.forwards.len() == services.len() && !sidecar.forwards.contains(&0), "{forward}");
        sidecar
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The port that comes after `before` in a line.
fn port(line: &str, before: &str) -> u16 {
    let digits = line.split_once(before).map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next());
    digits.flatten().and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no {before} in {line}"))
}

fn app(name: &str, protocol: &str, speak: &str) -> String {
    let run = "${BIN}/weft-test-app";
    format!("  {name}:\n    run: {run}\n    protocol: {protocol}\n    env: {{ SPEAK: {speak} }}\n")
}

fn plain() -> String {
    app("plain", "http1", "http1")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_forward_refuses_bytes_that_its_service_does_not_speak() {
    let bed = Bed::start(&probe_service(1)).await;
    let sidecar = Sidecar::start(&bed, &["probe", "nobody"]).await;
    let [grpc, nobody] = sidecar.forwards[..] else { panic!("two: {:?}", sidecar.forwards) };
    // Bytes that are not HTTP do not reach a service that speaks HTTP. The last forward leads to no service at all.
    assert_eq!(raw(grpc, b"\x16\x03\x01\x02\x00 is no HTTP\r\n").await, b"");
    assert_eq!(raw(nobody, b"GET / HTTP/1.1\r\nHost: nobody\r\n\r\n").await, b"");
    assert_eq!(metric(sidecar.metrics, "weft_panics_total", "").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn mesh_yaml_can_give_a_service_a_forward() {
    let held = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let [grpc, http1] = held.map(|listener| listener.local_addr().expect("a bound socket").port());
    let services = format!("{}    forward: {grpc}\n{}    forward: {http1}\n", probe_service(1), plain());
    let bed = Bed::start(&services).await;
    assert_eq!((bed.forward("probe"), bed.forward("plain")), (grpc, http1));
    probe(&channel(grpc), "Say", &[]).await.expect("an answer");
    assert_takes_every_request(http1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_grpc_forward_takes_every_call_to_its_service() {
    let bed = &Bed::start(&[probe_service(1), plain()].concat()).await;
    let sidecar = Sidecar::start(bed, &["probe"]).await;
    let client = channel(sidecar.forwards[0]);
    let pid = bed.pid("probe-1").to_string();
    // Neither the authority, which is the port's own address, nor a header decides where it goes.
    for headers in [&[][..], &[("x-weft-service", "plain")]] {
        let answer = probe(&client, "Say", headers).await.expect("an answer");
        assert_eq!(answer.metadata().get("x-pid").expect("a pid"), pid.as_str(), "{headers:?}");
    }
    let told = probe(&client, "Say", &[("x-do", "headers")]).await.expect("an answer").into_inner().text;
    assert!(told.contains("x-forwarded-client-cert: ") && told.contains("/sa/guest"), "{told}");
    // The contract's options apply here, too.
    let late = probe(&client, "Quick", &[("x-do", "sleep:30000")]).await.expect_err("its timeout passes");
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    assert_eq!(metric(sidecar.metrics, "weft_panics_total", "").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_http1_forward_takes_every_request_to_its_service() {
    let bed = Bed::start(&plain()).await;
    let sidecar = Sidecar::start(&bed, &["plain"]).await;
    assert_takes_every_request(sidecar.forwards[0]).await;
    assert_eq!(metric(sidecar.metrics, "weft_panics_total", "").await, 0.0);
}

async fn assert_takes_every_request(port: u16) {
    // The whole path is passed on. On the outbound port its first part would name a service.
    let (status, echo) = get(port, "/probe/index.html?a=b").await;
    assert_eq!(status, 200, "{echo}");
    assert!(echo.starts_with("GET /probe/index.html?a=b HTTP/1.1\r\n"), "{echo}");
    assert!(echo.contains(&format!("\r\nhost: 127.0.0.1:{port}\r\n")), "{echo}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_forward_takes_no_call_that_another_web_site_may_have_sent() {
    let bed = &Bed::start(&[probe_service(1), plain()].concat()).await;
    let sidecar = Sidecar::start(bed, &["probe", "plain"]).await;
    let [grpc, http1] = sidecar.forwards[..] else { panic!("two: {:?}", sidecar.forwards) };
    let answer = async |head: String| {
        let answer = raw(http1, format!("{head}Connection: close\r\n\r\n").as_bytes()).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    let get = async |host: &str| answer(format!("GET / HTTP/1.1\r\nHost: {host}\r\n")).await;
    for host in
        ["localhost", "[::1]:80", "10.0.0.1", "devbox:8080", "plain", "plain.shop:80", "plain.shop.svc.cluster.local"]
    {
        assert!(get(host).await.starts_with("HTTP/1.1 200 "), "{host}");
    }
    // A name that leads here only because its owner says so: DNS rebinding.
    for host in ["rebound.example", "plain.shop.rebound.example:80", "probe.shop"] {
        let refused = get(host).await;
        assert!(refused.starts_with("HTTP/1.1 421 ") && refused.contains("x-weft-error: misdirected\r\n"), "{refused}");
    }
    let channel = |authority: &str| {
        let origin = format!("http://{authority}").parse().expect("a URL");
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{grpc}")).expect("a URL");
        endpoint.origin(origin).connect_lazy()
    };
    probe(&channel("probe.shop"), "Say", &[]).await.expect("an answer");
    let refused = probe(&channel("rebound.example"), "Say", &[]).await.expect_err("it is no name of the service");
    assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
    assert_eq!(refused.metadata().get("x-weft-error").expect("the mesh says so"), "misdirected");

    // A page of another site may only read. Pages of this host may do anything.
    let send = async |method: &str, fields: &str| {
        answer(format!("{method} / HTTP/1.1\r\nHost: 127.0.0.1:{http1}\r\nContent-Length: 0\r\n{fields}")).await
    };
    let evil = "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n";
    let refused = send("POST", evil).await;
    assert!(
        refused.starts_with("HTTP/1.1 403 ") && refused.contains("x-weft-error: permission-denied\r\n"),
        "{refused}"
    );
    assert!(send("GET", evil).await.starts_with("HTTP/1.1 200 "));
    let own = format!("Origin: http://127.0.0.1:{http1}\r\nSec-Fetch-Site: same-origin\r\n");
    for fields in [&own, "Origin: http://localhost:5173\r\nSec-Fetch-Site: cross-site\r\n", ""] {
        assert!(send("POST", fields).await.starts_with("HTTP/1.1 200 "), "{fields}");
    }
    let upgrade = "Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
    let socket = format!("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade, close\r\n{upgrade}{evil}\r\n");
    let refused = String::from_utf8_lossy(&raw(http1, socket.as_bytes()).await).into_owned();
    assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    assert_eq!(metric(sidecar.metrics, "weft_failures_total", "misdirected").await, 4.0);
    assert_eq!(metric(sidecar.metrics, "weft_panics_total", "").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_tcp_forward_takes_a_connection_to_its_service() {
    let bed = Bed::start(&app("db", "tcp", "tcp")).await;
    let sidecar = Sidecar::start(&bed, &["db.shop"]).await;
    let mut stream = TcpStream::connect(("127.0.0.1", sidecar.forwards[0])).await.expect("the forward listens");
    let mut greeting = [0; 11];
    timeout(LIMIT, stream.read_exact(&mut greeting)).await.expect("it speaks first").expect("it is there");
    assert_eq!(&greeting, b"220 ready\r\n");
    assert_eq!(metric(sidecar.metrics, "weft_panics_total", "").await, 0.0);
}
