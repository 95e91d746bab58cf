//! The dashboard with a made-up shop and some calls, to work on its pages without running a mesh:
//! `cargo run -p weft-control --example dashboard`, then <http://127.0.0.1:15080>.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span},
};
use weft_contracts::weft::{
    discovery::v1::{Endpoint, Health, Protocol, Service},
    policy::v1::{
        Breaker, Contract, Fallback, Hedge, Idempotency, Method, Origin, ServicePolicy, Timeout, breaker::SlowCall,
        fallback,
    },
};
use weft_control::{
    dashboard::{Catalog, Dashboard, serve},
    traces::Store,
};
use weft_mesh::telemetry::attribute;

const SERVER: i32 = 2;
const CLIENT: i32 = 3;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:15080".to_owned());
    let store = Arc::new(Store::new());
    let mut number = 0;
    let mut call = |store: &Store, seconds_ago: u64| {
        number += 1;
        let at = now() - Duration::from_secs(seconds_ago).as_nanos() as u64;
        match number % 3 {
            0 => get(store, number, at),
            _ => create(store, number, at, number % 5 == 0),
        }
    };
    for seconds_ago in [190, 95, 61, 44, 30, 12, 3] {
        call(&store, seconds_ago);
    }
    let listener = tokio::net::TcpListener::bind(&address).await?;
    println!("http://{}", listener.local_addr()?);
    let more = async {
        loop {
            tokio::time::sleep(Duration::from_secs(4)).await;
            call(&store, 0);
        }
    };
    tokio::select! {
        served = serve(listener, Dashboard::new(store.clone(), Arc::new(Shop)), std::future::pending()) => served,
        () = more => Ok(()),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
}

/// The id of the trace with this number.
fn trace_id(number: u64) -> Vec<u8> {
    u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes().to_vec()
}

/// Adds the spans of a call to one trace, with ids counted up.
struct Call<'a> {
    store: &'a Store,
    trace: u64,
    at: u64,
    next: u8,
}

impl Call<'_> {
    /// Adds a span of (service, whether of its sidecar); times are microseconds after the call's start. Returns its id.
    fn span(&mut self, by: (&str, bool), parent: u8, kind: i32, name: &str, from: u64, to: u64) -> u8 {
        self.span_with(by, parent, kind, name, from, to, |_| {})
    }

    #[allow(clippy::too_many_arguments)]
    fn span_with(
        &mut self,
        (service, sidecar): (&str, bool),
        parent: u8,
        kind: i32,
        name: &str,
        from: u64,
        to: u64,
        more: impl FnOnce(&mut Span),
    ) -> u8 {
        self.next += 1;
        let mut span = Span {
            trace_id: trace_id(self.trace),
            span_id: vec![self.next; 8],
            parent_span_id: if parent == 0 { Vec::new() } else { vec![parent; 8] },
            name: name.to_owned(),
            kind,
            start_time_unix_nano: self.at + from * 1_000,
            end_time_unix_nano: self.at + to * 1_000,
            attributes: vec![
                text(attribute::RPC_SYSTEM_NAME, attribute::system::GRPC),
                text(attribute::RPC_METHOD, name),
                text(attribute::SERVER_ADDRESS, &format!("{}.shop", name.split('.').nth(1).unwrap_or(service))),
            ],
            ..Span::default()
        };
        more(&mut span);
        let component = if sidecar { "sidecar" } else { "service" };
        let attributes = vec![
            text("service.name", service),
            text("service.namespace", "shop"),
            text("weft.component", component),
            text("service.instance.id", "3f1c9a52"),
        ];
        let resource = Some(Resource { attributes, ..Resource::default() });
        let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
        let spans = ResourceSpans { resource, scope_spans, ..ResourceSpans::default() };
        self.store.export(ExportTraceServiceRequest { resource_spans: vec![spans] });
        self.next
    }

    /// A call from one service to another through both sidecars. Returns the id of the span in the called service.
    fn hop(&mut self, from: &str, to: &str, parent: u8, name: &str, start: u64, end: u64) -> u8 {
        let out = self.span((from, true), parent, CLIENT, name, start, end);
        let attempt = self.span((from, true), out, CLIENT, name, start + 45, end - 30);
        let inside = self.span((to, true), attempt, SERVER, name, start + 160, end - 120);
        self.span((to, false), inside, SERVER, name, start + 240, end - 190)
    }
}

fn create(store: &Store, trace: u64, at: u64, fails: bool) {
    let mut call = Call { store, trace, at, next: 0 };
    let name = "shop.users.v1.Users/Create";
    let users = call.hop("keyboard", "users", 0, name, 0, 11_400);
    let client = call.span(("users", false), users, CLIENT, "shop.auth.v1.Auth/Validate", 400, 3_300);
    if fails {
        let refused = |span: &mut Span| {
            span.status =
                Some(Status { code: 2, message: "connect to 127.0.0.1:40123: connection refused".to_owned() });
            span.events.push(span::Event {
                name: "exception".to_owned(),
                time_unix_nano: span.end_time_unix_nano - 90_000,
                attributes: vec![text("exception.type", "weft.connect"), text("exception.message", "refused")],
                ..span::Event::default()
            });
            span.attributes.push(text(attribute::ERROR_TYPE, "UNAVAILABLE"));
        };
        let name = "shop.auth.v1.Auth/Validate";
        let out = call.span_with(("users", true), client, CLIENT, name, 480, 3_200, refused);
        call.span_with(("users", true), out, CLIENT, name, 520, 1_300, refused);
        call.span_with(("users", true), out, CLIENT, name, 1_340, 3_100, refused);
        // Its parent never arrives.
        call.span(("notifications", false), 200, 5, "users.created process", 5_000, 7_000);
        return;
    }
    call.hop("users", "auth", client, "shop.auth.v1.Auth/Validate", 480, 3_200);
    call.span_with(("users", false), users, 1, "store: write", 3_400, 6_900, |span| {
        span.events.push(span::Event {
            name: "fsync".to_owned(),
            time_unix_nano: span.start_time_unix_nano + 1_200_000,
            ..span::Event::default()
        });
    });
    let client = call.span(("users", false), users, CLIENT, "shop.notifications.v1.Notifications/Send", 7_000, 10_700);
    let sent = call.hop("users", "notifications", client, "shop.notifications.v1.Notifications/Send", 7_060, 10_600);
    let link = span::Link { trace_id: trace_id(1), span_id: vec![1; 8], ..span::Link::default() };
    call.span_with(("notifications", false), sent, 4, "<b>mail</b> & queue", 7_500, 9_800, |span| {
        span.links.push(link);
        span.attributes.push(text("note", "<script>alert('from a span')</script>"));
    });
}

fn get(store: &Store, trace: u64, at: u64) {
    let mut call = Call { store, trace, at, next: 0 };
    call.hop("keyboard", "products", 0, "shop.products.v1.Products/Get", 0, 1_250);
}

fn text(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

/// Five services, some of them with problems.
struct Shop;

impl Catalog for Shop {
    fn services(&self) -> Vec<Service> {
        let all = ["auth", "notifications", "orders", "products", "users"];
        all.iter().enumerate().map(|(number, name)| service(name, number)).collect()
    }
}

fn service(name: &str, number: usize) -> Service {
    let endpoint = |replica: usize, health: Health| Endpoint {
        id: format!("{name}-{replica}"),
        address: format!("127.0.0.1:{}", 40_100 + 10 * number + replica),
        spiffe_id: format!("spiffe://weft.local/ns/shop/sa/{name}"),
        health: health.into(),
        silent: false,
    };
    let endpoints = match name {
        "auth" => vec![endpoint(0, Health::Up), endpoint(1, Health::Down)],
        "orders" => vec![endpoint(0, Health::Draining), endpoint(1, Health::Up)],
        _ => vec![endpoint(0, Health::Up)],
    };
    let duration = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let method = |name: &str, idempotency: Idempotency, timeout: Option<(i64, Origin)>| Method {
        name: name.to_owned(),
        server_streaming: name == "Watch",
        idempotency: idempotency.into(),
        timeout: timeout.map(|(seconds, origin)| Timeout { value: duration(seconds), origin: origin.into() }),
        fallback: (name == "Get").then(|| Fallback {
            to: Some(fallback::To::Answer(fallback::Answer { message: Vec::new().into(), json: "{}".into() })),
            origin: Origin::MethodOption.into(),
        }),
        hedge: (name == "Get").then(|| Hedge {
            after: Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 }),
            origin: Origin::ServiceOption.into(),
        }),
        ..Method::default()
    };
    let title = name[..1].to_uppercase() + &name[1..];
    let methods = vec![
        method("Create", Idempotency::Unknown, Some((2, Origin::MethodOption))),
        method("Get", Idempotency::NoSideEffects, Some((1, Origin::ServiceOption))),
        method("Delete", Idempotency::Idempotent, Some((15, Origin::Default))),
        method("Watch", Idempotency::Unknown, None),
    ];
    let breaker = Breaker {
        consecutive_failures: 5,
        failure_ratio: 0.5,
        minimum_calls: 20,
        window: duration(10),
        open_for: duration(5),
        probes: 1,
        failure_codes: vec![13, 14, 15],
        origin: if name == "users" { Origin::ServiceOption } else { Origin::Default }.into(),
        slow_call: (name == "users").then(|| SlowCall { longer_than: duration(1), ratio: 0.5 }),
    };
    Service {
        name: format!("{name}.shop"),
        protocol: Protocol::Http2.into(),
        endpoints,
        policy: Some(ServicePolicy {
            contracts: vec![Contract { name: format!("shop.{name}.v1.{title}"), methods, stands_in_for: Vec::new() }],
            breaker: Some(breaker),
            ..ServicePolicy::default()
        }),
        complete: true,
        ..Service::default()
    }
}
