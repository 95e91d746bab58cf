//! The dashboard through real sockets.

use std::time::Duration;

use axum::extract::Request;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, trace_service_client::TraceServiceClient, trace_service_server::SERVICE_NAME,
    },
    common::v1::{AnyValue, KeyValue, any_value::Value as Otlp},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use weft_contracts::weft::discovery::v1::{Endpoint, Health, Protocol, Service};
use weft_mesh::{http_server::Ends, limits};

use super::{routes::refusal, *};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const ATTACK: &str = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>";

struct Running {
    address: String,
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

struct Users;

impl Catalog for Users {
    fn services(&self) -> Vec<Service> {
        let endpoint = Endpoint {
            id: ATTACK.to_owned(),
            address: "127.0.0.1:40100".to_owned(),
            spiffe_id: "spiffe://weft.local/ns/shop/sa/users".to_owned(),
            health: Health::Up.into(),
            silent: false,
        };
        vec![Service {
            name: "users.shop".to_owned(),
            protocol: Protocol::Http2.into(),
            endpoints: vec![endpoint],
            complete: true,
            ..Service::default()
        }]
    }
}

async fn start() -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (stop, stopped) = oneshot::channel::<()>();
    let dashboard = Dashboard::new(Arc::new(Store::new()), Arc::new(Users));
    let task = tokio::spawn(serve(listener, dashboard, async { drop(stopped.await) }));
    Running { address, stop, task }
}

/// Sends a GET over HTTP/1.1. Returns the head and the body of the answer.
async fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(60), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn text(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Otlp::StringValue(value.to_owned())) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

fn span(id: u8, parent: u8, name: &str) -> Span {
    Span {
        trace_id: (0..16).map(|n| u8::from_str_radix(&TRACE[2 * n..2 * n + 2], 16).unwrap()).collect(),
        span_id: vec![id; 8],
        parent_span_id: if parent == 0 { Vec::new() } else { vec![parent; 8] },
        name: name.to_owned(),
        kind: 3,
        start_time_unix_nano: 1_795_461_807_000_000_000 + u64::from(id) * 1_000_000,
        end_time_unix_nano: 1_795_461_807_100_000_000 - u64::from(id) * 1_000_000,
        ..Span::default()
    }
}

fn spans(service: &str, component: &str, spans: Vec<Span>) -> ResourceSpans {
    let attributes = vec![text("service.name", service), text("weft.component", component)];
    ResourceSpans {
        resource: Some(Resource { attributes, ..Resource::default() }),
        scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }],
        ..ResourceSpans::default()
    }
}

async fn export(address: &str, resource_spans: Vec<ResourceSpans>) -> (i64, String) {
    let mut client = TraceServiceClient::connect(format!("http://{address}")).await.unwrap();
    let answer = client.export(ExportTraceServiceRequest { resource_spans }).await.unwrap().into_inner();
    answer.partial_success.map_or((0, String::new()), |partial| (partial.rejected_spans, partial.error_message))
}

#[tokio::test]
async fn exported_spans_come_back_as_json_and_as_pages() {
    let Running { address, .. } = &start().await;
    let failed = Span {
        status: Some(Status { code: 2, message: "no such user".to_owned() }),
        attributes: vec![text("rpc.method", "shop.users.v1.Users/Get")],
        events: vec![span::Event { name: "sent".to_owned(), time_unix_nano: 7, ..span::Event::default() }],
        ..span(2, 1, "shop.users.v1.Users/Get")
    };
    let bad = Span { trace_id: vec![0; 16], ..span(3, 0, "x") };
    let refused = export(
        address,
        vec![
            spans("users", "service", vec![failed]),
            spans("keyboard", "sidecar", vec![span(1, 0, "shop.users.v1.Users/Get"), bad]),
        ],
    )
    .await;
    assert_eq!(refused.0, 1);
    assert!(refused.1.contains("1 spans without valid ids"), "{}", refused.1);

    let (_, list) = get(address, "/api/traces?errors=true&name=users/get&service=keyboard").await;
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["traces"][0]["trace_id"], TRACE);
    assert_eq!(list["traces"][0]["services"], serde_json::json!(["keyboard", "users"]));

    let (_, trace) = get(address, &format!("/api/traces/{TRACE}")).await;
    let trace: Value = serde_json::from_str(&trace).unwrap();
    let (root, child) = (&trace["spans"][0], &trace["spans"][1]);
    assert_eq!(trace["trace_id"], TRACE);
    assert_eq!((&root["parent_span_id"], &root["component"]), (&Value::Null, &Value::from("sidecar")));
    assert_eq!(child["parent_span_id"], root["span_id"]);
    assert_eq!(child["status"], serde_json::json!({ "code": "error", "message": "no such user" }));
    assert_eq!(child["start_unix_nano"], 1_795_461_807_002_000_000_u64);
    assert_eq!((&child["duration_nano"], &child["kind"]), (&Value::from(96_000_000), &Value::from("client")));
    assert_eq!(child["attributes"], serde_json::json!({ "rpc.method": "shop.users.v1.Users/Get" }));
    assert_eq!(child["events"][0]["name"], "sent");

    let (head, page) = get(address, &format!("/traces/{TRACE}")).await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/html"), "{head}");
    for part in ["Users/Get", "2026-11-23T19:23:27.001Z", "98.0 ms", "✕", "no such user", "id=\"s-0202020202020202\""]
    {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    let (_, page) = get(address, "/traces").await;
    assert!(page.contains(&format!("href=\"/traces/{TRACE}\"")), "{page}");
    let (_, page) = get(address, "/").await;
    assert!(page.contains("127.0.0.1:40100") && page.contains("spiffe://weft.local/ns/shop/sa/users"), "{page}");
    let (_, services) = get(address, "/api/services").await;
    assert!(services.contains("\"address\":\"127.0.0.1:40100\""), "{services}");
}

#[tokio::test]
async fn the_content_of_spans_is_shown_and_never_run() {
    let Running { address, .. } = &start().await;
    let link = span::Link { trace_id: vec![9; 16], span_id: vec![9; 8], ..span::Link::default() };
    let event =
        span::Event { name: ATTACK.to_owned(), attributes: vec![text(ATTACK, ATTACK)], ..span::Event::default() };
    let hostile = Span {
        status: Some(Status { code: 2, message: ATTACK.to_owned() }),
        attributes: vec![text(ATTACK, ATTACK)],
        events: vec![event],
        links: vec![link],
        ..span(1, 7, ATTACK)
    };
    export(address, vec![spans(ATTACK, "service", vec![hostile])]).await;
    let asked = "/traces?name=%22%27%3E%3Cscript%3Ealert%281%29%3C%2Fscript%3E&service=%22%3E%3Cscript%3Ealert";
    let odd = "/traces/%3Cscript%3Ealert(1)%3C%2Fscript%3E";
    for path in ["/", "/traces", asked, odd, &format!("/traces/{TRACE}")] {
        let (head, page) = get(address, path).await;
        assert!(!page.contains("<script>alert") && !page.contains("<img src=x"), "{path}: {page}");
        let policy = head.lines().find(|line| line.starts_with("content-security-policy")).expect("a policy");
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    }
    let (_, page) = get(address, &format!("/traces/{TRACE}")).await;
    assert!(page.contains("&lt;script&gt;alert") && page.contains("parent not seen"), "{page}");
    assert!(page.contains("href=\"/traces/09090909090909090909090909090909#s-0909090909090909\""), "{page}");
}

#[tokio::test]
async fn missing_pages_and_traces_are_explained() {
    let Running { address, .. } = &start().await;
    let cases = [
        (format!("/traces/{TRACE}"), "404", "Either it has not arrived yet"),
        ("/traces/xyz".to_owned(), "404", "This is not the id of a trace"),
        ("/api/traces/xyz".to_owned(), "400", "hexadecimal"),
        (format!("/api/traces/{TRACE}"), "404", "no span of this trace has arrived"),
        ("/nothing".to_owned(), "404", "No such page"),
        ("/traces?limit=0".to_owned(), "400", "allowed is a number from 1 to 500"),
        ("/api/traces?errors=perhaps".to_owned(), "400", "allowed are true and false"),
        ("/healthz".to_owned(), "200", "ok"),
        ("/readyz".to_owned(), "200", "ready"),
        ("/traces".to_owned(), "200", "No trace yet"),
    ];
    for (path, status, part) in cases {
        let (head, body) = get(address, &path).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {head}");
        assert!(body.contains(part), "{path}: {body}");
    }
}

#[tokio::test]
async fn an_export_over_its_limit_is_refused_and_the_dashboard_goes_on() {
    let Running { address, .. } = &start().await;
    let mut client = TraceServiceClient::connect(format!("http://{address}")).await.unwrap();
    let large = Span { name: "x".repeat(limits::OTLP_MESSAGE_BYTES), ..span(1, 0, "") };
    let request = ExportTraceServiceRequest { resource_spans: vec![spans("users", "service", vec![large])] };
    let refused = client.export(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::OutOfRange, "{refused}");
    assert_eq!(export(address, vec![spans("users", "service", vec![span(1, 0, "x")])]).await.0, 0);
}

#[tokio::test]
async fn other_host_names_and_spans_of_other_hosts_are_refused() {
    let Running { address, .. } = &start().await;
    let ask = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(Duration::from_secs(60), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    };
    for path in ["/", "/traces", "/api/traces", "/api/services", "/metrics", "/assets/weft.css"] {
        let refused = ask(path).await;
        assert!(refused.starts_with("HTTP/1.1 421") && refused.contains("--dashboard-host"), "{path}: {refused}");
    }
    assert!(ask("/healthz").await.starts_with("HTTP/1.1 200"), "a probe may use any name");

    let dashboard = Dashboard::new(Arc::new(Store::new()), Arc::new(Users));
    let export = |from: [u8; 4], dashboard: &Dashboard| {
        let mut request = Request::new(axum::body::Body::empty());
        *request.uri_mut() = format!("/{SERVICE_NAME}/Export").parse().unwrap();
        let [local, peer] = [[127, 0, 0, 1], from].map(|ip| (ip, 15080).into());
        request.extensions_mut().insert(Ends { local, peer });
        refusal(&dashboard.access, &request)
    };
    assert!(export([127, 0, 0, 1], &dashboard).is_none());
    let refused = export([10, 0, 0, 1], &dashboard).unwrap();
    assert_eq!(refused.headers()["grpc-status"], "7");
    let open = dashboard.with_access(Access { remote_spans: true, ..Access::default() });
    assert!(export([10, 0, 0, 1], &open).is_none());
}

#[tokio::test]
async fn a_wrong_question_for_sidecars_is_refused() {
    let Running { address, .. } = &start().await;
    let (head, body) = get(address, "/api/sidecars?limit=10&after=10.0.0.1,spiffe://a/b").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer, serde_json::json!({"sidecars": [], "next": null}));
    for query in ["after=x", "after=x,y", "limit=0", "limit=501"] {
        let (head, body) = get(address, &format!("/api/sidecars?{query}")).await;
        let field = query.split_once('=').unwrap().0;
        assert!(head.starts_with("HTTP/1.1 400") && body.contains(field), "{query}: {head} {body}");
    }
}

#[tokio::test]
async fn it_stops_on_request_even_with_idle_connections() {
    let Running { address, stop, task } = start().await;
    let _silent = TcpStream::connect(&address).await.unwrap();
    let client = TraceServiceClient::connect(format!("http://{address}")).await.unwrap();
    get(&address, "/healthz").await;
    stop.send(()).unwrap();
    tokio::time::timeout(limits::DASHBOARD_TIMEOUT / 2, task).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(&address).await.is_err());
    drop(client);
}
