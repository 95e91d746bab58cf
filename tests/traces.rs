//! A call's trace, read back from the built-in store and from a real Jaeger (v2).

use std::{
    collections::HashMap,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use weft_tests::{Bed, eventually, get, outside, root, skip};

/// A guard that only a very slow machine reaches.
const LIMIT: Duration = Duration::from_secs(60);

/// The services that take part in the creation of a user.
fn shop() -> String {
    ["users", "auth", "notifications"]
        .map(|name| {
            let data = if name == "users" { " --data users-data" } else { "" };
            let proto = root().join(format!("proto/shop/{name}/v1/{name}.proto"));
            format!(
                "  {name}:\n    run: ${{BIN}}/shop-{name}{data}\n    protos: [{}]\n    proto_path: ${{PROTO_PATH}}\n",
                proto.display()
            )
        })
        .concat()
}

/// Creates a user with `weft call`, and returns the id of the trace that it prints.
fn create(bed: &Bed) -> String {
    let call = bed.weft(&["call", "shop.users.v1.Users/Create", r#"{"name":"Ada","email":"ada@example.com"}"#]);
    let told = String::from_utf8_lossy(&call.stderr).into_owned();
    assert!(call.status.success(), "{told}");
    let address = told.lines().find_map(|line| line.strip_prefix("trace: ")).expect("the trace's address");
    assert!(address.contains(&format!(":{}/", bed.dashboard())), "{address}");
    address.rsplit('/').next().expect("an id").to_owned()
}

/// A span, from either store.
#[derive(Debug)]
struct Span {
    id: String,
    parent: Option<String>,
    name: String,
    kind: String,
    service: String,
    component: String,
    is_error: bool,
    /// The values of the attributes in [`RPC`].
    rpc: [String; 4],
}

/// The attributes that each span has, by OpenTelemetry's conventions for RPC.
const RPC: [&str; 4] = ["rpc.system.name", "rpc.method", "rpc.response.status_code", "server.address"];

/// Each hop of `Create` is there once, below the one before it, and none failed: `weft call` → keyboard's sidecar
/// (call, attempt) → users' sidecar → users → (its client span →) users' sidecar → auth's sidecar → auth.
fn check(spans: &[Span]) {
    let by_id: HashMap<&str, &Span> = spans.iter().map(|span| (span.id.as_str(), span)).collect();
    let one = |service: &str, component: &str, kind: &str, method: &str, parent_kind: Option<&str>| -> &Span {
        let is_it = |span: &&Span| {
            let parent = span.parent.as_deref().and_then(|id| by_id.get(id));
            let parent_fits = parent_kind.is_none_or(|kind| parent.is_some_and(|parent| parent.kind == kind));
            let who = span.service == service && span.component == component && span.kind == kind;
            who && span.name.ends_with(method) && parent_fits
        };
        let found: Vec<_> = spans.iter().filter(is_it).collect();
        let [span] = found[..] else { panic!("{service} {component} {kind} {method}: {found:#?}\nof {spans:#?}") };
        span
    };
    let way_up = |span: &Span| {
        let mut names = vec![];
        let mut at = Some(span);
        while let Some(span) = at {
            names.push(format!("{}/{}/{}", span.service, span.component, span.kind));
            at = span.parent.as_deref().and_then(|id| by_id.get(id).copied());
        }
        names
    };
    let auth = one("auth", "service", "server", "shop.auth.v1.Auth/Validate", None);
    assert_eq!(
        way_up(auth),
        [
            "auth/service/server",
            "auth/sidecar/server",
            "users/sidecar/client",
            "users/sidecar/client",
            "users/service/client",
            "users/service/server",
            "users/sidecar/server",
            "keyboard/sidecar/client",
            "keyboard/sidecar/client",
            "weft-call/service/client",
        ]
    );
    one("notifications", "service", "server", "shop.notifications.v1.Notifications/Notify", None);
    one("users", "service", "server", "shop.users.v1.Users/Create", None);
    for span in spans {
        assert!(!span.is_error, "{span:?}");
        assert_eq!(span.rpc[..3], ["grpc", &span.name, "OK"], "{span:?}");
        assert!(!span.rpc[3].is_empty(), "{span:?}");
        let is_known = span.parent.as_deref().is_none_or(|id| by_id.contains_key(id));
        assert!(is_known, "a span is missing above {span:?}");
    }
}

/// The spans of `Create`: five for each of the two services that are called, and five from `weft call` to `users`.
const SPANS: usize = 15;

#[tokio::test]
async fn a_call_is_one_trace_in_the_built_in_store() {
    let bed = Bed::start(&shop()).await;
    let id = create(&bed);
    let path = format!("/api/traces/{id}");
    eventually("all spans are in the store", LIMIT, async || {
        get(bed.dashboard(), &path).await.1.matches("\"span_id\"").count() >= SPANS
    })
    .await;
    let trace = bed.json(bed.dashboard(), &path).await;
    let text = |span: &Value, key: &str| span[key].as_str().unwrap_or_default().to_owned();
    let spans: Vec<Span> = trace["spans"]
        .as_array()
        .expect("spans")
        .iter()
        .map(|span| Span {
            id: text(span, "span_id"),
            parent: span["parent_span_id"].as_str().map(str::to_owned),
            name: text(span, "name"),
            kind: text(span, "kind"),
            service: text(span, "service"),
            component: text(span, "component"),
            is_error: span["status"]["code"] == "error",
            rpc: RPC.map(|key| text(&span["attributes"], key)),
        })
        .collect();
    check(&spans);
    let (status, page) = get(bed.dashboard(), &format!("/traces/{id}")).await;
    assert_eq!(status, 200);
    assert!(page.contains("<svg") && page.contains("shop.auth.v1.Auth/Validate"), "{page}");

    // A call that fails is marked as such.
    let call = bed.weft(&["call", "shop.users.v1.Users/Get", r#"{"id":"nobody"}"#]);
    assert!(!call.status.success());
    eventually("the failed call is found by its filter", LIMIT, async || {
        get(bed.dashboard(), "/api/traces?errors=true").await.1.contains("shop.users.v1.Users/Get")
    })
    .await;
}

/// Jaeger, ended with the test.
struct Jaeger {
    process: Child,
    otlp: u16,
    query: u16,
}

impl Jaeger {
    fn start(program: &std::path::Path) -> Self {
        let held: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let port = |n: usize| held[n].local_addr().expect("a bound socket").port();
        let [otlp, query, query_grpc] = [0, 1, 2].map(port);
        let ports = [("JAEGER_OTLP_PORT", otlp), ("JAEGER_QUERY_PORT", query), ("JAEGER_QUERY_GRPC_PORT", query_grpc)];
        drop(held);
        let mut command = Command::new(program);
        command.arg("--config").arg(root().join("tests/jaeger/config.yaml"));
        command.envs(ports.map(|(name, port)| (name, port.to_string()))).stdout(Stdio::null()).stderr(Stdio::null());
        Self { process: command.spawn().expect("Jaeger starts"), otlp, query }
    }
}

impl Drop for Jaeger {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_call_is_one_trace_in_jaeger() {
    let Some(program) = outside("jaeger") else {
        return skip("Jaeger is not installed: see CONTRIBUTING.md for how to build it");
    };
    let jaeger = Jaeger::start(&program);
    eventually("Jaeger listens", LIMIT, async || {
        tokio::net::TcpStream::connect(("127.0.0.1", jaeger.query)).await.is_ok()
            && tokio::net::TcpStream::connect(("127.0.0.1", jaeger.otlp)).await.is_ok()
    })
    .await;
    let bed = Bed::start_with(&shop(), &["--otlp", &format!("http://127.0.0.1:{}", jaeger.otlp)]).await;
    let id = create(&bed);
    let path = format!("/api/traces/{id}");
    eventually("all spans are in Jaeger", LIMIT, async || {
        get(jaeger.query, &path).await.1.matches("\"operationName\"").count() >= SPANS
    })
    .await;
    let answer: Value = bed.json(jaeger.query, &path).await;
    let trace = &answer["data"][0];
    let tag = |tags: &Value, key: &str| {
        let tags = tags.as_array().cloned().unwrap_or_default();
        tags.iter().find(|tag| tag["key"] == key).map(|tag| tag["value"].to_string().trim_matches('"').to_owned())
    };
    let spans: Vec<Span> = trace["spans"]
        .as_array()
        .expect("spans")
        .iter()
        .map(|span| {
            let process = &trace["processes"][span["processID"].as_str().expect("a process")];
            Span {
                id: span["spanID"].as_str().expect("an id").to_owned(),
                parent: span["references"][0]["spanID"].as_str().map(str::to_owned),
                name: span["operationName"].as_str().expect("a name").to_owned(),
                kind: tag(&span["tags"], "span.kind").unwrap_or_default(),
                service: process["serviceName"].as_str().expect("a name").to_owned(),
                component: tag(&process["tags"], "weft.component").unwrap_or_default(),
                is_error: tag(&span["tags"], "error").is_some_and(|error| error == "true"),
                rpc: RPC.map(|key| tag(&span["tags"], key).unwrap_or_default()),
            }
        })
        .collect();
    check(&spans);
}
