//! Calls that their service cannot take go on to a fallback, as `docs/fallbacks.md` says.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_prost::ProstCodec;
use weft_tests::{Bed, Text, eventually, framed, metric, probe_service, root, signal};

const LIMIT: Duration = Duration::from_secs(60);

/// The service whose methods have fallbacks, the one that they name, and the one whose method they name.
fn services() -> String {
    let service = |name: &str, proto: &str| {
        let proto = root().join("tests/proto/probe/v1").join(proto).display().to_string();
        format!("  {name}:\n    run: ${{BIN}}/weft-test-app\n    protos: [{proto}]\n    proto_path: ${{PROTO_PATH}}\n")
    };
    [service("primary", "fallback.proto"), service("backup", "strict.proto"), probe_service(1)].concat()
}

/// Calls a method of the primary service, which does as `what` says.
async fn call(bed: &Bed, method: &str, what: &str) -> Result<tonic::Response<Text>, tonic::Status> {
    let mut request = tonic::Request::new(Text { text: "hello".into() });
    request.metadata_mut().insert("x-do", what.parse().expect("an ASCII value"));
    let mut client = tonic::client::Grpc::new(bed.channel());
    client.ready().await.expect("the sidecar is there");
    let path = http::uri::PathAndQuery::try_from(format!("/probe.fallback.v1.Primary/{method}")).expect("a path");
    client.unary(request, path, ProstCodec::<Text, Text>::default()).await
}

/// The value of a header, or nothing.
fn header<'m>(metadata: &'m tonic::metadata::MetadataMap, name: &str) -> &'m str {
    metadata.get(name).map(|value| value.to_str().expect("text")).unwrap_or_default()
}

/// What a method of the primary answers, and where that comes from.
async fn answered(bed: &Bed, method: &str) -> (String, String) {
    let answer = call(bed, method, "").await.expect("an answer");
    (answer.get_ref().text.clone(), header(answer.metadata(), "x-weft-fallback").to_owned())
}

/// Has the process of a service stand still, and waits until callers know that it is down.
async fn stop(bed: &Bed, replica: &str, is_known: impl AsyncFnMut() -> bool) {
    signal("-STOP", bed.pid(replica));
    eventually("callers know that it is down", LIMIT, is_known).await;
}

/// The value of a header, or nothing.
fn field<'a>(answer: &'a Response<Bytes>, name: &str) -> &'a str {
    answer.headers().get(name).map(|value| value.to_str().expect("text")).unwrap_or_default()
}

/// An answer to a request over HTTP/2.
async fn ask(bed: &Bed, request: http::request::Builder, body: Bytes) -> Response<Bytes> {
    let stream = TcpStream::connect(("127.0.0.1", bed.outbound())).await.expect("it listens");
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.expect("HTTP/2 begins");
    tokio::spawn(connection);
    let response = sender.send_request(request.body(Full::new(body)).expect("a request")).await;
    let (head, body) = response.expect("an answer").into_parts();
    Response::from_parts(head, body.collect().await.expect("a whole answer").to_bytes())
}

#[tokio::test]
async fn a_call_that_its_service_can_not_take_is_answered_by_its_fallback() {
    let bed = Bed::start(&services()).await;
    for method in ["Say", "Other", "Fixed", "None"] {
        assert_eq!(answered(&bed, method).await, ("hello".into(), String::new()), "{method}");
    }
    stop(&bed, "primary-1", async || {
        // It waits for nobody who does not answer.
        let none = tokio::time::timeout(Duration::from_millis(500), call(&bed, "None", "")).await;
        none.is_ok_and(|none| none.is_err_and(|status| header(status.metadata(), "x-weft-error") == "no-endpoint"))
    })
    .await;
    assert_eq!(answered(&bed, "Say").await, ("hello".into(), "no-endpoint; to=backup.shop".into()));
    assert_eq!(answered(&bed, "Other").await, ("hello".into(), "no-endpoint; to=probe.v1.Probe/Say".into()));
    assert_eq!(answered(&bed, "Fixed").await, ("fixed".into(), "no-endpoint; to=answer".into()));
    let keyboard = bed.ports("keyboard").metrics;
    assert_eq!(metric(keyboard, "weft_fallbacks_total", "Primary/Fixed").await, 1.0);
    a_fixed_answer_is_in_the_protocol_of_its_call(&bed).await;
    signal("-CONT", bed.pid("primary-1"));
}

async fn a_fixed_answer_is_in_the_protocol_of_its_call(bed: &Bed) {
    const FIXED: &str = "/probe.fallback.v1.Primary/Fixed";
    let url = format!("http://127.0.0.1:{}{FIXED}", bed.outbound());
    let of = async |headers: &[(&str, &str)], body: Bytes| {
        let request = headers.iter().fold(Request::post(&url), |request, (name, value)| request.header(*name, *value));
        let answer = ask(bed, request, body).await;
        assert_eq!((answer.status().as_u16(), field(&answer, "x-weft-fallback")), (200, "no-endpoint; to=answer"));
        answer
    };
    let web = of(&[("content-type", "application/grpc-web+proto")], framed("hello")).await;
    let expected = [&framed("fixed")[..], b"\x80\0\0\0\x0fgrpc-status:0\r\n"].concat();
    assert_eq!((field(&web, "content-type"), &web.body()[..]), ("application/grpc-web+proto", &expected[..]));
    let connect = [("content-type", "application/json"), ("connect-protocol-version", "1")];
    let connect = of(&connect, Bytes::from_static(b"{}")).await;
    let said: Value = serde_json::from_slice(connect.body()).expect("JSON");
    assert_eq!((field(&connect, "content-type"), said), ("application/json", json!({ "text": "fixed" })));

    // Over HTTP/1.1, too.
    let output = std::process::Command::new("curl")
        .args(["-sS", "-i", "--max-time", "60", "-H", "content-type: application/json"])
        .args(["-H", "connect-protocol-version: 1", "-d", "{}", &url])
        .output();
    let output = output.expect("curl starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with(r#"{"text":"fixed"}"#), "{text}");

    let plain = ask(bed, Request::post(&url).header("x-weft-service", "primary"), Bytes::new()).await;
    assert_eq!((plain.status().as_u16(), field(&plain, "x-weft-error")), (503, "no-endpoint"));
}

#[tokio::test]
async fn an_open_breaker_leads_to_the_fallback_and_what_the_service_says_does_not() {
    let bed = Bed::start(&services()).await;
    let refused = call(&bed, "Fixed", "status:5").await.expect_err("the service's own answer");
    assert_eq!((refused.code(), header(refused.metadata(), "x-weft-fallback")), (Code::NotFound, ""));
    for _ in 0..3 {
        let failed = call(&bed, "Fixed", "status:14").await.expect_err("the service's own answer");
        assert_eq!((failed.code(), header(failed.metadata(), "x-weft-fallback")), (Code::Unavailable, ""));
    }
    assert_eq!(answered(&bed, "Fixed").await, ("fixed".into(), "breaker-open; to=answer".into()));
    assert_eq!(answered(&bed, "Say").await, ("hello".into(), "breaker-open; to=backup.shop".into()));
    let none = call(&bed, "None", "").await.expect_err("it has no fallback");
    assert_eq!(header(none.metadata(), "x-weft-error"), "breaker-open");

    // The fallback has a breaker of its own, and says that it failed as well.
    for _ in 0..3 {
        let failed = call(&bed, "Say", "status:2").await.expect_err("the fallback's own answer");
        assert_eq!(header(failed.metadata(), "x-weft-fallback"), "breaker-open; to=backup.shop");
    }
    let failed = call(&bed, "Say", "").await.expect_err("both are shut");
    assert_eq!(header(failed.metadata(), "x-weft-error"), "breaker-open");
    assert!(failed.message().starts_with("primary.shop fails too often"), "{failed:?}");
    assert!(failed.message().contains("; its fallback failed as well: backup.shop fails too often"), "{failed:?}");
}

/// Runs `weft call`, and gives its answer or what is wrong.
fn weft_call(bed: &Bed, method: &str, request: &Value) -> Result<Value, String> {
    let output = bed.weft(&["call", "-c", method, &request.to_string()]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(told);
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}")))
}

#[tokio::test]
async fn orders_takes_an_order_without_a_price_while_products_is_down() {
    let services: String = ["auth", "notifications", "users", "products", "orders"]
        .map(|name| {
            format!(
                "  {name}:\n    run: ${{BIN}}/shop-{name}\n    protos: [{}/proto/shop/{name}/v1/{name}.proto]\n    \
                 proto_path: ${{PROTO_PATH}}\n",
                root().display()
            )
        })
        .concat();
    let bed = Bed::start(&services).await;
    let ada = json!({ "name": "Ada", "email": "ada@example.com" });
    let ada = weft_call(&bed, "shop.users.v1.Users/Create", &ada).expect("an answer");
    let order = json!({ "userId": ada["id"], "items": [{ "productId": "teapot", "quantity": 2 }] });
    let place = || weft_call(&bed, "shop.orders.v1.Orders/Place", &order).expect("an order, whatever products does");
    assert_eq!(place()["totalCents"], "9600");

    let get = || weft_call(&bed, "shop.products.v1.Products/Get", &json!({ "id": "teapot" }));
    stop(&bed, "products-1", async || get().is_ok_and(|product| product["name"] == "not available at the moment"))
        .await;
    let orders = bed.ports("orders-1").metrics;
    eventually("orders is told so, too", LIMIT, async || {
        let placed = place();
        assert_eq!(placed["totalCents"], Value::Null, "{placed}");
        assert_eq!(placed["lines"][0]["priceCents"], Value::Null, "{placed}");
        metric(orders, "weft_fallbacks_total", "Products/Get").await >= 1.0
    })
    .await;

    signal("-CONT", bed.pid("products-1"));
    eventually("products is back", LIMIT, async || place()["totalCents"] == "9600").await;
}
