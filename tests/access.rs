//! Who may call what: by the contract, by the mesh's rules, live, and on every way that leads to a service.

use std::{fs, path::Path, time::Duration};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use weft_tests::{Bed, Client, FREE_PORTS, Wire, binary, channel, eventually, framed, metric, probe, root, unary};

const LIMIT: Duration = Duration::from_secs(60);

/// A mesh in a folder of its own: `probe` with rules in its contract, two more callers, a service of HTTP/1.1 with rules
/// for its paths, and one of TCP.
struct Mesh {
    bed: Bed,
}

const ACCESS: &str = "access: deny";
const SERVICE_RULE: &str = "access: { allow: ['keyboard', 'friend'] }";

/// The contract of `probe` with these rules for the service and for some methods.
fn contract(service: &str, methods: &[(&str, &str)]) -> String {
    let mut text = fs::read_to_string(root().join("tests/proto/probe/v1/probe.proto")).expect("it is there");
    text = text.replace("stands_in_for: 'primary'", &format!("stands_in_for: 'primary' {service}"));
    // Each method gets an option, to which the rule is added.
    let quick = "option (weft.options.v1.method) = { timeout";
    text = text.replace(quick, "option (weft.options.v1.method) = { /*Quick*/ timeout");
    for (method, begin) in [("Say", ";"), ("Chat", ";"), ("Read", " {\n")] {
        let head = text.lines().find(|line| line.contains(&format!("rpc {method}("))).expect("it has it").to_owned();
        let head = head.trim_end_matches([';', '{', ' ']);
        let option = format!("{head} {{ option (weft.options.v1.method) = {{ /*{method}*/ }};");
        let end = if begin == ";" { " }" } else { "\n" };
        text = text.replace(&format!("{head}{begin}"), &format!("{option}{end}"));
    }
    for (method, rule) in methods {
        let place = format!("/*{method}*/");
        assert!(text.contains(&place), "{text}");
        text = text.replace(&place, &format!("access: {{ {rule} }}"));
    }
    text
}

fn mesh_yaml(access: &str, web: &str, store: &str) -> String {
    let app = binary("weft-test-app");
    let app = app.display();
    format!(
        "namespace: shop\n{FREE_PORTS}\n{access}\nservices:\n  probe:\n    run: {app}\n    env: {{ MAX_STREAMS: 1000 }}\n    protos: \
         [proto/probe/v1/probe.proto]\n  friend: {{ run: {app}, access: nobody }}\n  stranger: {{ run: {app} }}\n  web:\n    run: \
         {app}\n    protocol: http1\n    env: {{ SPEAK: http1 }}\n    {web}\n  store:\n    run: {app}\n    protocol: tcp\n    env: {{ \
         SPEAK: tcp }}\n    {store}\n"
    )
}

impl Mesh {
    async fn start(access: &str, contract: &str, web: &str, store: &str) -> Self {
        let dir = TempDir::new().expect("a folder of its own");
        fs::create_dir_all(dir.path().join("proto/probe/v1")).expect("the folder can be written");
        fs::write(dir.path().join("proto/probe/v1/probe.proto"), contract).expect("the folder can be written");
        fs::write(dir.path().join("mesh.yaml"), mesh_yaml(access, web, store)).expect("the folder can be written");
        Self { bed: Bed::start_at::<&str>(dir, &["--verbose"], &[], LIMIT).await }
    }

    async fn usual() -> Self {
        let rules = [("Read", "allow: 'friend'"), ("Quick", "allow: 'nobody' audit: true"), ("Chat", "allow: 'any'")];
        let web = "access: { allow: [keyboard], paths: [{ path: /admin/*, allow: friend }, { path: /read, methods: [GET], allow: \
                   any }] }";
        Self::start(ACCESS, &contract(SERVICE_RULE, &rules), web, "access: [friend]").await
    }

    fn write(&self, file: &str, text: &str) {
        // As a whole, as editors do.
        let (path, new) = (self.bed.dir().join(file), self.bed.dir().join("new"));
        fs::write(&new, text).expect("it can be written");
        fs::rename(new, path).expect("it can be replaced");
    }

    async fn says(&self, text: &str) {
        eventually(text, LIMIT, async || self.bed.log().contains(text)).await;
    }

    /// A call of `probe` by the program beside a sidecar.
    async fn call(&self, caller: &str, method: &str) -> Result<(), Status> {
        let port = match caller {
            "keyboard" => self.bed.outbound(),
            other => self.bed.ports(&format!("{other}-1")).outbound,
        };
        probe(&channel(port), method, &[]).await.map(|_| ())
    }

    async fn denied(&self, label: &str) -> f64 {
        metric(self.bed.ports("probe-1").metrics, "weft_access_denied_total", label).await
    }
}

#[track_caller]
fn is_denied(outcome: Result<(), Status>, rule: &str) {
    let status = outcome.expect_err("the call is refused");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert_eq!(status.metadata().get("x-weft-error").expect("the mesh refused it"), "permission-denied");
    let details = status.get_error_details();
    let info = details.error_info().expect("an ErrorInfo");
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("permission-denied", "weft"));
    assert_eq!(info.metadata["rule"], rule, "{status:?}");
    assert_eq!((info.metadata["hop"].as_str(), info.metadata["service"].as_str()), ("inbound", "probe.shop"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_contract_says_who_may_call_each_method() {
    let mesh = Mesh::usual().await;
    mesh.call("keyboard", "Say").await.expect("the service's rule names it");
    mesh.call("friend", "Say").await.expect("the service's rule names it");
    is_denied(mesh.call("stranger", "Say").await, "service-option");
    mesh.call("friend", "Read").await.expect("the method's rule names it");
    is_denied(mesh.call("keyboard", "Read").await, "method-option");
    // The rule is only tried.
    mesh.call("stranger", "Quick").await.expect("it goes on");
    let around = "../../grpc.health.v1.Health/../probe.v1.Probe/Read";
    is_denied(mesh.call("keyboard", around).await, "no-contract");
    // Not quite a method of the contract.
    is_denied(mesh.call("keyboard", "read").await, "no-contract");
    let status = mesh.call("friend", "read").await.expect_err("the mesh's default denies it");
    assert_eq!(status.get_error_details().error_info().expect("details").metadata["rule"], "mesh-default");

    let label =
        |caller: &str, rule: &str, audit: bool| format!("peer=\"{caller}.shop\",rule=\"{rule}\",audit=\"{audit}\"");
    assert_eq!(mesh.denied(&label("keyboard", "method-option", false)).await, 1.0);
    assert_eq!(mesh.denied(&label("stranger", "method-option", true)).await, 1.0);
    assert_eq!(mesh.denied("method=\"probe.v1.Probe/Read\"").await, 1.0);
    mesh.says("keyboard.shop may not call probe.v1.Probe/Read, by the option `access` of the method").await;
    mesh.says(
        "stranger.shop may not call probe.v1.Probe/Quick, by the option `access` of the method; the call goes on",
    )
    .await;
    // The dashboard shows it, too.
    let shown = async || {
        let calls = mesh.bed.json(mesh.bed.dashboard(), "/api/access").await["not_allowed"].clone();
        let row = |method: &str, audit: bool| {
            serde_json::json!({
                "service": "probe.shop",
                "caller": if audit { "stranger.shop" } else { "keyboard.shop" },
                "method": format!("probe.v1.Probe/{method}"),
                "rule": "method-option",
                "audit": audit,
                "calls": 1,
            })
        };
        let calls = calls.as_array().expect("a list");
        calls.contains(&row("Read", false)) && calls.contains(&row("Quick", true))
    };
    eventually("the dashboard has them", LIMIT, shown).await;
    let (_, page) = weft_tests::get(mesh.bed.dashboard(), "/").await;
    assert!(page.contains("Calls that are not allowed") && page.contains("went on: the rule is only tried"), "{page}");
    let spans = async || {
        let list = mesh.bed.json(mesh.bed.dashboard(), "/api/traces?limit=100").await.to_string();
        list.contains("probe.v1.Probe/Read")
    };
    eventually("the refused call is in the traces", LIMIT, spans).await;
}

/// Who is refused hurts nobody else, also not by the breaker of a sidecar that several programs share.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn refused_calls_open_no_breaker() {
    let mesh = Mesh::usual().await;
    for _ in 0..30 {
        is_denied(mesh.call("keyboard", "Read").await, "method-option");
    }
    mesh.call("keyboard", "Say").await.expect("the service is well");
}

/// The status of a GET through the keyboard's sidecar, or another's.
async fn http(port: u16, method: &str, path: &str) -> String {
    let mut client = Client::connect(port).await;
    client
        .send(&format!("{method} {path} HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"))
        .await;
    let (head, _) = client.answer().await;
    head.split(' ').nth(1).unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn rules_hold_for_http_tcp_upgrades_and_tunnels() {
    let mesh = Mesh::usual().await;
    let (keyboard, friend) = (mesh.bed.outbound(), mesh.bed.ports("friend-1").outbound);
    assert_eq!(http(keyboard, "GET", "/x").await, "200");
    assert_eq!(http(friend, "GET", "/x").await, "403");
    assert_eq!(http(friend, "GET", "/admin/x").await, "200");
    for path in ["/admin/x", "/admin", "/ADMIN/", "/%61dmin/x", "/x/../admin", "//admin", "/admin;a/x", "/admin%2fx"] {
        assert_eq!(http(keyboard, "GET", path).await, "403", "{path}");
    }
    assert_eq!(
        (http(friend, "GET", "/read").await, http(friend, "POST", "/read?x=/admin").await),
        ("200".into(), "403".into())
    );

    // An upgrade is a request like any other.
    for (path, status) in [("/admin/upgrade", "403"), ("/upgrade", "101"), ("/read", "200")] {
        let mut client = Client::connect(keyboard).await;
        let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: \
                       dGhlIHNhbXBsZSBub25jZQ==";
        client.send(&format!("GET {path} HTTP/1.1\r\nhost: web\r\n{upgrade}\r\n\r\n")).await;
        let head = client.until("\r\n\r\n").await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
    }

    // A connection is a call: one that may not be made ends before the service has said a word.
    let mut refused = TcpStream::connect(("127.0.0.1", mesh.bed.forward("store"))).await.expect("the forward listens");
    let mut said = Vec::new();
    let _ = timeout(LIMIT, refused.read_to_end(&mut said)).await.expect("the connection ends");
    assert!(said.is_empty(), "{}", said.escape_ascii());
    mesh.says("keyboard.shop may not call store.shop, by the mesh's rule for the service").await;
    mesh.write("mesh.yaml", &mesh_yaml(ACCESS, "access: any", "access: [keyboard]"));
    eventually("the changed rule lets it in", LIMIT, async || greets(mesh.bed.forward("store")).await).await;
    assert_eq!(http(friend, "POST", "/x/../admin").await, "200", "without rules for paths each path is fine");

    // What runs is judged again: the connection ends when the rule does.
    let mut open = TcpStream::connect(("127.0.0.1", mesh.bed.forward("store"))).await.expect("the forward listens");
    open.write_all(b"idle\n").await.expect("it is open");
    let mut greeting = [0; 11];
    open.read_exact(&mut greeting).await.expect("it is let in");
    mesh.write("mesh.yaml", &mesh_yaml(ACCESS, "access: any", "access: nobody"));
    let ended = timeout(LIMIT, open.read(&mut greeting)).await.expect("the connection ends");
    assert!(!ended.is_ok_and(|bytes| bytes > 0), "nothing more is said");
}

/// Whether the service of TCP behind a port says its greeting.
async fn greets(port: u16) -> bool {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the forward listens");
    let mut greeting = [0; 9];
    stream.read_exact(&mut greeting).await.is_ok_and(|_| greeting == *b"220 ready")
}

/// It has left the registry, and is told of changes all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_draining_sidecar_judges_its_last_calls_by_new_rules() {
    let mesh = Mesh::usual().await;
    let mut wire = Wire::connect(mesh.bed.outbound()).await;
    let (answer, mut says) = wire.open("Chat", &[]).await;
    says.send_data(framed("hello"), false).expect("the stream is open");
    let mut body = answer.await.expect("an answer").into_body();
    body.data().await.expect("an echo").expect("a part of it");
    let mut admin = TcpStream::connect(("127.0.0.1", mesh.bed.ports("probe-1").admin)).await.expect("it listens");
    let drain = b"POST /drain HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n";
    admin.write_all(drain).await.expect("it reads");
    mesh.says("left service=probe.shop").await;
    let file = mesh_yaml(ACCESS, "", "").replace("protos:", "access: nobody\n    protos:");
    mesh.write("mesh.yaml", &file);
    let ends = async {
        while let Some(Ok(_)) = body.data().await {}
        let trailers = body.trailers().await.expect("a whole answer").expect("trailers");
        is_denied(Err(Status::from_header_map(&trailers).expect("a status")), "mesh-rule");
    };
    timeout(LIMIT, ends).await.expect("the stream ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn running_streams_are_judged_again_when_a_rule_changes() {
    const STREAMS: usize = 1_000;
    let mesh = Mesh::usual().await;
    let friend = mesh.bed.ports("friend-1").outbound;
    let mut of_keyboard = Vec::new();
    let mut connections = Vec::new();
    for _ in 0..STREAMS / 50 {
        let mut wire = Wire::connect(mesh.bed.outbound()).await;
        for _ in 0..50 {
            let (answer, mut says) = wire.open("Chat", &[]).await;
            says.send_data(framed("hello"), false).expect("the stream is open");
            of_keyboard.push((answer.await.expect("an answer").into_body(), says));
        }
        connections.push(wire);
    }
    let mut wire = Wire::connect(friend).await;
    let (answer, mut says) = wire.open("Chat", &[]).await;
    says.send_data(framed("hello"), false).expect("the stream is open");
    let mut of_friend = answer.await.expect("an answer").into_body();
    of_friend.data().await.expect("an echo").expect("a part of it");

    // A change that is not about them leaves them alone, and so does a rule that is only tried.
    let with = |rule| contract(SERVICE_RULE, &[("Chat", rule)]);
    mesh.write("proto/probe/v1/probe.proto", &with("allow: 'friend' audit: true"));
    mesh.says("the contracts of the local service have changed").await;
    for (body, says) in &mut of_keyboard {
        body.data().await.expect("an echo").expect("the stream goes on");
        says.send_data(framed("world"), false).expect("the stream goes on");
        body.data().await.expect("an echo").expect("the stream goes on");
    }
    mesh.write("proto/probe/v1/probe.proto", &with("allow: 'friend'"));
    let all_end = async {
        for (body, _says) in &mut of_keyboard {
            while let Some(Ok(_)) = body.data().await {}
            let trailers = body.trailers().await.expect("a whole answer").expect("trailers");
            let status = Status::from_header_map(&trailers).expect("a status");
            is_denied(Err(status), "method-option");
        }
    };
    timeout(LIMIT, all_end).await.expect("each stream ends");
    says.send_data(framed("world"), true).expect("the other caller's stream goes on");
    assert_eq!(of_friend.data().await.expect("an echo").expect("a part of it"), framed("world"));
    assert_eq!(mesh.denied("method=\"probe.v1.Probe/Chat\"").await, STREAMS as f64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_meshs_default_changes_while_it_runs() {
    let mesh = Mesh::start("", &contract("", &[]), "", "").await;
    mesh.call("stranger", "Say").await.expect("every member may call");
    mesh.write("mesh.yaml", &mesh_yaml("access: deny", "", ""));
    eventually("the default denies it", LIMIT, async || mesh.call("stranger", "Say").await.is_err()).await;
    is_denied(mesh.call("stranger", "Say").await, "mesh-default");
    // A rule that is wrong changes nothing, and is named with its place.
    mesh.write("mesh.yaml", &mesh_yaml("access: dney", "", ""));
    mesh.says("access: found the text \"dney\"; allowed: allow, deny").await;
    is_denied(mesh.call("stranger", "Say").await, "mesh-default");
    mesh.write("mesh.yaml", &mesh_yaml("access: { default: deny, audit: true }", "", ""));
    eventually("the rules are only tried", LIMIT, async || mesh.call("stranger", "Say").await.is_ok()).await;
    mesh.write("mesh.yaml", &mesh_yaml("access: { default: allow, namespaces: { shop: deny } }", "", ""));
    eventually("the namespace denies it", LIMIT, async || mesh.call("stranger", "Say").await.is_err()).await;
    is_denied(mesh.call("stranger", "Say").await, "namespace-default");

    // The rules hold on while the control plane is away, and when it has come back.
    let control = mesh.bed.pid("control");
    mesh.bed.kill("control");
    is_denied(mesh.call("stranger", "Say").await, "namespace-default");
    eventually("another control plane runs", LIMIT, async || mesh.bed.pid("control") != control).await;
    for _ in 0..20 {
        is_denied(mesh.call("stranger", "Say").await, "namespace-default");
    }
    // A new sidecar knows them before it takes the first call.
    mesh.bed.kill("probe-1·sidecar");
    for _ in 0..50 {
        let status = mesh.call("stranger", "Say").await.expect_err("it is never let in");
        assert!(matches!(status.code(), Code::PermissionDenied | Code::Unavailable), "{status:?}");
    }
}

fn run(mesh: &Path, args: &[&str]) -> (bool, String) {
    let output = std::process::Command::new(binary("weft")).args(args).current_dir(mesh).output().expect("weft starts");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).expect("text"))
}

#[test]
fn the_command_line_explains_and_checks_rules() {
    let dir = TempDir::new().expect("a folder of its own");
    fs::create_dir_all(dir.path().join("proto/probe/v1")).expect("the folder can be written");
    let rules = [("Read", "allow: 'frend'"), ("Quick", "allow: 'nobody' audit: true")];
    let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).expect("the folder can be written");
    write("proto/probe/v1/probe.proto", &contract(SERVICE_RULE, &rules));
    let web = "access: { allow: [keyboard], paths: [{ path: /admin/*, allow: friend }] }";
    let weft = |args: &[&str]| run(dir.path(), args);
    write("mesh.yaml", &mesh_yaml("access: { default: deny, namespaces: { shpo: deny } }", web, ""));
    let (is_good, said) = weft(&["check"]);
    let remark = "access.namespaces.shpo: no service of this mesh is in that namespace; did you mean `shop`?";
    assert!(is_good && said.contains(remark), "{said}");
    write("mesh.yaml", &mesh_yaml(ACCESS, web, ""));
    let (is_good, said) = weft(&["check"]);
    assert!(is_good, "{said}");
    let remark = "the option `access` of method probe.v1.Probe/Read: `frend` matches no service of this mesh; did you mean \
                  `friend`?";
    assert!(said.contains(remark), "{said}");

    for (args, lines) in [
        (
            &["friend", "probe.v1.Probe/Say"][..],
            &[
                "friend.shop may call probe.v1.Probe/Say, by the option `access` of the protobuf \
            service (service probe.shop)",
                "  probe/v1/probe.proto: allow: keyboard, friend",
            ][..],
        ),
        (
            &["friend", "probe.v1.Probe/Read"],
            &[
                "friend.shop may not call probe.v1.Probe/Read, by the option `access` of the \
            method (service probe.shop)",
                "  probe/v1/probe.proto: allow: frend",
            ],
        ),
        (
            &["web", "probe.v1.Probe/Quick"],
            &[
                "web.shop may not call probe.v1.Probe/Quick, by the option `access` of the method \
            (service probe.shop)",
                "  probe/v1/probe.proto: allow: nobody, audit: true",
                "  the rule is only tried (audit): the call \
            goes on, and is counted and logged",
            ],
        ),
        (
            &["keyboard", "web/admin/x"],
            &[
                "keyboard.shop may not call GET web.shop/admin/x, by the mesh's rule for the path (service \
            web.shop)",
                "  mesh.yaml: services.web.access.paths",
            ],
        ),
        (
            &["keyboard", "web"],
            &[
                "keyboard.shop may call web.shop, by the mesh's rule for the service (service web.shop)",
                "  mesh.yaml: services.web.access: allow: keyboard",
                "keyboard.shop may not call GET web.shop/admin/*, by the mesh's rule for the path (service web.shop)",
                "  mesh.yaml: services.web.access.paths",
            ],
        ),
        (
            &["keyboard", "store"],
            &[
                "keyboard.shop may not call store.shop, by the mesh's default (service store.shop)",
                "  mesh.yaml: access: deny",
            ],
        ),
        (
            &["frend", "store"],
            &[
                "frend.shop may not call store.shop, by the mesh's default (service store.shop)",
                "  mesh.yaml: access: deny",
                "spiffe://weft.local/ns/shop/sa/frend is not in mesh.yaml; did you mean friend.shop?",
            ],
        ),
    ] {
        let (is_good, said) = weft(&[&["access", "explain"], args].concat());
        assert_eq!((is_good, said.lines().collect::<Vec<_>>()), (true, lines.to_vec()), "{args:?}");
    }
    for (called, why) in [
        ("probe.v1.Probe/Sayy", "probe.v1.Probe has no method \"Sayy\"; did you mean probe.v1.Probe/Say?"),
        ("prob", "\"prob\" is no contract and no service of mesh.yaml; did you mean probe?"),
    ] {
        let (is_good, said) = weft(&["access", "explain", "web", called]);
        assert!(!is_good && said.contains(why), "{said}");
    }

    write(
        "good.yaml",
        "- { caller: [keyboard, friend], calls: probe.v1.Probe/Say, expect: allowed }\n- { caller: friend, calls: [store, web/x], \
         expect: denied }\n- { caller: friend, calls: web/admin/x, http_method: POST, expect: allowed }\n",
    );
    assert_eq!(weft(&["access", "test", "good.yaml"]), (true, "5 expectations: all hold\n".into()));
    write(
        "broken.yaml",
        "- { caller: keyboard, calls: store, expect: denied }\n- { caller: friend, calls: store, expect: allowed }\n",
    );
    let said = "broken.yaml:2: friend.shop may not call store.shop, by the mesh's default; expected: allowed\n2 expectations: 1 \
                broken\n";
    assert_eq!(weft(&["access", "test", "broken.yaml"]), (false, said.into()));
    write("wrong.yaml", "- { caller: frend, calls: stoer, expect: maybe }\n- { calls: store }\n");
    let (is_good, said) = weft(&["access", "test", "wrong.yaml"]);
    for problem in [
        "wrong.yaml:1: [0].caller: spiffe://weft.local/ns/shop/sa/frend is not in mesh.yaml; did you mean friend.shop?",
        "wrong.yaml:1: [0].calls: \"stoer\" is no contract and no service of mesh.yaml; did you mean store?",
        "wrong.yaml:1: [0].expect: found the text \"maybe\"; allowed: allowed, denied",
        "wrong.yaml:2: [1].caller: missing",
    ] {
        assert!(!is_good && said.contains(problem), "{problem}\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn rules_are_suggested_from_calls_that_were_seen() {
    let mesh = Mesh::start("", &contract("", &[]), "", "").await;
    mesh.call("friend", "Say").await.expect("every member may call");
    mesh.call("stranger", "Say").await.expect("every member may call");
    mesh.call("keyboard", "Read").await.expect("every member may call");
    assert_eq!(http(mesh.bed.ports("friend-1").outbound, "GET", "/x").await, "200");
    let suggested = async || String::from_utf8(mesh.bed.weft(&["access", "suggest"]).stdout).expect("text");
    eventually("all calls are counted", LIMIT, async || suggested().await.contains("web:")).await;
    assert_eq!(
        suggested().await.lines().collect::<Vec<_>>(),
        [
            "// probe.shop: rpc probe.v1.Probe/Read",
            "option (weft.options.v1.method) = { access: { allow: [\"keyboard\"] } };",
            "// probe.shop: rpc probe.v1.Probe/Say",
            "option (weft.options.v1.method) = { access: { allow: [\"friend\", \"stranger\"] } };",
            "# web.shop, in mesh.yaml",
            "services: { web: { access: [\"friend\"] } }",
        ]
    );
}

/// A mesh of `stranger` and of services without `.proto` files that tell the contract in the file `contract`, after so
/// many milliseconds.
async fn telling(contract: &str, delay: u32, services: &[&str]) -> Mesh {
    let dir = TempDir::new().expect("a folder of its own");
    let file = dir.path().join("contract");
    fs::write(&file, contract).expect("the folder can be written");
    let (app, contract) = (binary("weft-test-app"), file.display());
    let app = app.display();
    let tells = |name: &&str| {
        format!("  {name}:\n    run: {app}\n    env: {{ REFLECT_FILE: {contract}, REFLECT_DELAY: {delay} }}\n")
    };
    let services: String = services.iter().map(tells).collect();
    let file = format!("namespace: shop\n{FREE_PORTS}\nservices:\n{services}  stranger: {{ run: {app} }}\n");
    fs::write(dir.path().join("mesh.yaml"), file).expect("the folder can be written");
    Mesh { bed: Bed::start_at::<&str>(dir, &["--verbose"], &[], LIMIT).await }
}

const NOTIFICATIONS: &str = "shop.notifications.v1.Notifications";

/// Calls a method at a service. The error is the rule that refuses the call, or else its status.
async fn call_by_name(mesh: &Mesh, caller: &str, service: &str, method: &str) -> Result<(), String> {
    let port = match caller {
        "keyboard" => mesh.bed.outbound(),
        other => mesh.bed.ports(&format!("{other}-1")).outbound,
    };
    let outcome = unary(&channel(port), &format!("/{method}"), &[("x-weft-service", service)]).await;
    outcome.map(drop).map_err(|status| {
        let details = status.get_error_details();
        let rule = details.error_info().and_then(|info| info.metadata.get("rule").cloned());
        rule.unwrap_or_else(|| format!("{status:?}"))
    })
}

/// Whichever service is called by the name of the contract.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_service_without_protos_holds_the_rules_of_the_contract_that_it_tells() {
    let mesh = telling(NOTIFICATIONS, 0, &["first", "second"]).await;
    let log = mesh.bed.log();
    assert!(log.contains(&format!("second: no contract of its own: {NOTIFICATIONS} belongs to first")), "{log}");
    let (list, notify) = (format!("{NOTIFICATIONS}/List"), format!("{NOTIFICATIONS}/Notify"));
    for service in ["first", "second"] {
        assert_eq!(call_by_name(&mesh, "keyboard", service, &list).await, Ok(()), "the rule names it");
        let refused = |rule: &str| Err(rule.to_owned());
        assert_eq!(call_by_name(&mesh, "stranger", service, &list).await, refused("service-option"));
        assert_eq!(call_by_name(&mesh, "keyboard", service, &notify).await, refused("method-option"));
    }

    // Another version of the program has another contract.
    mesh.write("contract", "shop.users.v1.Users");
    mesh.bed.kill("second-1");
    let get = "shop.users.v1.Users/Get";
    eventually("it is asked again", LIMIT, async || {
        // By the older contract, no rule would be for the method.
        call_by_name(&mesh, "stranger", "second", get).await == Err("service-option".to_owned())
    })
    .await;
    // Its sidecar hears of the endpoint at another moment than that of `stranger`.
    let is_let_in = async || call_by_name(&mesh, "keyboard", "second", get).await == Ok(());
    eventually("the keyboard is let in", LIMIT, is_let_in).await;

    // So may another that was down for a moment, whatever became of its process.
    let faints = [("x-weft-service", "first"), ("x-do", "faint:2500")];
    unary(&channel(mesh.bed.outbound()), &format!("/{list}"), &faints).await.expect("the rule names the keyboard");
    eventually("it is asked again", LIMIT, async || {
        call_by_name(&mesh, "stranger", "first", get).await == Err("service-option".to_owned())
    })
    .await;
}

/// Callers may slow it down, and must not get rid of its rules in that way.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nobody_may_call_a_service_that_does_not_tell_who_may() {
    let mesh = telling(NOTIFICATIONS, 0, &["slow"]).await;
    let list = format!("{NOTIFICATIONS}/List");
    assert_eq!(call_by_name(&mesh, "keyboard", "slow", &list).await, Ok(()), "the rule names it");
    mesh.write("contract", "hang");
    let old = mesh.bed.ports("slow-1").metrics;
    mesh.bed.kill("slow-1·sidecar");
    let mut asked_in_vain = async || {
        let is_let_in = call_by_name(&mesh, "stranger", "slow", &list).await.is_ok();
        assert!(!is_let_in, "nobody may call");
        let now = mesh.bed.ports("slow-1").metrics;
        now != old
            && TcpStream::connect(("127.0.0.1", now)).await.is_ok()
            && metric(now, "weft_contracts_refused_total", "").await >= 1.0
    };
    eventually("it was asked in vain", LIMIT, &mut asked_in_vain).await;
    call_by_name(&mesh, "keyboard", "slow", &list).await.expect_err("nobody may call");
    call_by_name(&mesh, "stranger", "slow", &list).await.expect_err("nobody may call");
    mesh.write("contract", NOTIFICATIONS);
    let is_let_in = async || call_by_name(&mesh, "keyboard", "slow", &list).await.is_ok();
    eventually("it has told them", LIMIT, is_let_in).await;
    assert_eq!(call_by_name(&mesh, "stranger", "slow", &list).await, Err("service-option".to_owned()));
}

/// Its sidecar is started again and does not know the contract yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nobody_may_call_a_service_before_it_has_told_who_may() {
    let mesh = telling(NOTIFICATIONS, 1_500, &["slow"]).await;
    let list = format!("{NOTIFICATIONS}/List");
    assert_eq!(call_by_name(&mesh, "keyboard", "slow", &list).await, Ok(()), "the rule names it");
    let times = || mesh.bed.log().matches("the local service has told its contracts").count();
    let before = times();
    mesh.bed.kill("slow-1·sidecar");
    let mut tries = 0;
    eventually("it has told them again", LIMIT, async || {
        call_by_name(&mesh, "stranger", "slow", &list).await.expect_err("it is never let in");
        tries += 1;
        times() > before
    })
    .await;
    assert!(tries > 1, "nobody tried");
    let is_let_in = async || call_by_name(&mesh, "keyboard", "slow", &list).await.is_ok();
    eventually("the keyboard is let in", LIMIT, is_let_in).await;
}
