//! What spans of calls export, by OpenTelemetry's conventions for RPC.

use super::*;

const GRPC: (&str, &str) = ("content-type", "application/grpc");

fn head(fields: &[(&str, &str)]) -> Headers {
    let mut head = Headers::new();
    fields.iter().for_each(|(name, value)| head.append_bytes(name.as_bytes(), value.as_bytes()));
    head
}

fn span(kind: SpanKind, method: Option<&str>, fields: &[(&str, &str)]) -> Span {
    let context = TraceContext::new_root(7, 9, true);
    let method = method.map(Arc::<str>::from);
    let service = ServiceName::parse("users.shop").unwrap();
    Span::new(context, None, kind, method.as_ref(), &service, &head(fields))
}

/// The attributes of a span as text, in order.
fn said(span: &SpanData) -> Vec<String> {
    span.attributes.iter().map(|said| format!("{}={}", said.key, said.value)).collect()
}

#[test]
fn a_call_and_its_try_have_the_attributes_of_the_grpc_conventions() {
    let call = span(SpanKind::Client, Some("shop.users.v1.Users/Get"), &[GRPC]);
    let attempt = call.attempt(2, "users-1", &"2001:db8::1".into(), 15006).ended(0, None);
    let call = call.ended(0, None);
    let of_call = ["rpc.system.name=grpc", "rpc.method=shop.users.v1.Users/Get", "server.address=users.shop"];
    assert_eq!(said(&call), [&of_call[..], &["rpc.response.status_code=OK"]].concat());
    let of_attempt = [
        "weft.attempt=2",
        "weft.endpoint=users-1",
        "network.peer.address=2001:db8::1",
        "network.peer.port=15006",
        "rpc.response.status_code=OK",
    ];
    assert_eq!(said(&attempt), [&of_call[..], &of_attempt].concat());
    for span in [&call, &attempt] {
        assert_eq!((&*span.name, &span.status), ("shop.users.v1.Users/Get", &Status::Unset));
    }
    assert_eq!(attempt.parent_span_id, call.span_context.span_id());
}

#[test]
fn a_method_that_no_descriptor_knows_is_other_and_does_not_name_the_span() {
    let fields = [GRPC, (":path", "/shop.users.v1.Users/Guess?me")];
    let call = span(SpanKind::Server, None, &fields).ended(12, None);
    let expected = [
        "rpc.system.name=grpc",
        "rpc.method=_OTHER",
        "rpc.method_original=shop.users.v1.Users/Guess",
        "server.address=users.shop",
        "rpc.response.status_code=UNIMPLEMENTED",
        "error.type=UNIMPLEMENTED",
    ];
    assert_eq!((said(&call), &*call.name), (expected.map(str::to_owned).to_vec(), "grpc"));
    let long = format!("/{}", "a".repeat(5_000));
    let call = span(SpanKind::Server, None, &[GRPC, (":path", &long)]).ended(0, None);
    assert_eq!(call.attributes[2].value.as_str().len(), limits::SPAN_NAME_BYTES);
}

#[test]
fn a_span_has_the_name_of_its_calls_status() {
    let ended = |kind: SpanKind, code, error| {
        let span = span(kind, Some("a.B/C"), &[GRPC]).ended(code, error);
        let of = |key| span.attributes.iter().find(|said| said.key.as_str() == key).map(|said| said.value.to_string());
        let (status, error) = (of("rpc.response.status_code").unwrap(), of("error.type"));
        assert_eq!(span.status, error.clone().map_or(Status::Unset, Status::error));
        (status, error.unwrap_or_default())
    };
    let text = |status: &str, error: &str| (status.to_owned(), error.to_owned());
    // For the caller each status but OK is an error; for the service, only those that are its own fault.
    assert_eq!(ended(SpanKind::Client, 5, None), text("NOT_FOUND", "NOT_FOUND"));
    assert_eq!(ended(SpanKind::Server, 5, None), text("NOT_FOUND", ""));
    assert_eq!(ended(SpanKind::Server, 14, None), text("UNAVAILABLE", "UNAVAILABLE"));
    assert_eq!(ended(SpanKind::Client, 14, Some("no-endpoint")), text("UNAVAILABLE", "no-endpoint"));
    assert_eq!(ended(SpanKind::Client, CANCELLED_BY_CALLER, None), text("CANCELLED", "CALLER_GONE"));
}

#[test]
fn a_span_says_which_fallback_has_answered_its_call() {
    let mut call = span(SpanKind::Client, Some("a.B/C"), &[GRPC]);
    call.fell_back(Reason::NoEndpoint, "cache.shop");
    call.fell_back(Reason::BreakerOpen, "answer");
    let attempt = call.attempt(1, "cache-1", &"10.0.0.2".into(), 15006).ended(0, None);
    let call = call.ended(0, None);
    let fallback = ["weft.fallback.reason=breaker-open", "weft.fallback.to=answer"];
    assert_eq!(said(&call)[3..5], fallback, "the last one answers");
    let events: Vec<_> =
        call.events.iter().map(|event| (&*event.name, event.attributes[1].value.to_string())).collect();
    assert_eq!(events, [("fallback", "cache.shop".to_owned()), ("fallback", "answer".to_owned())]);
    assert!(said(&attempt).iter().all(|said| !said.starts_with("weft.fallback")), "it is of the call");
}

#[test]
fn connect_has_its_own_codes_and_plain_http_has_no_rpc_attributes() {
    let connect = [("content-type", "application/proto"), ("connect-protocol-version", "1")];
    let of = |fields: &[_], method, code| said(&span(SpanKind::Client, method, fields).ended(code, None));
    let of_call = ["rpc.system.name=connectrpc", "rpc.method=a.B/C", "server.address=users.shop"];
    assert_eq!(of(&connect, Some("a.B/C"), 0), of_call);
    let failed = ["rpc.response.status_code=unavailable", "error.type=unavailable"];
    assert_eq!(of(&connect, Some("a.B/C"), 14), [&of_call[..], &failed].concat());
    assert_eq!(of(&[(":method", "GET"), (":path", "/a")], None, 0), ["server.address=users.shop"]);
    assert_eq!(span(SpanKind::Client, None, &[(":method", "GET"), (":path", "/a")]).ended(0, None).name, "GET");
}

#[test]
fn spans_share_their_texts_and_never_reallocate() {
    let method = Arc::<str>::from("a.B/C");
    let service = ServiceName::parse("users.shop").unwrap();
    let (ip, head) = (Arc::<str>::from("10.0.0.2"), head(&[GRPC]));
    let call = Span::new(TraceContext::new_root(7, 9, true), None, SpanKind::Client, Some(&method), &service, &head);
    let attempt = call.attempt(1, "users-1", &ip, 15006);
    // The test's own reference, and one for each span.
    assert_eq!((Arc::strong_count(&method), Arc::strong_count(&ip)), (3, 2));
    let attempt = attempt.ended(14, Some("connect-failed"));
    assert_eq!(attempt.attributes.capacity(), ATTRIBUTES);
    let id = "spiffe://weft.local/ns/shop/sa/users".parse().unwrap();
    let mut unknown = Span::new(TraceContext::new_root(7, 9, true), None, SpanKind::Server, None, &service, &head);
    Caller::new(&id, "[::ffff:10.0.0.1]:40000".parse().unwrap()).tell(&mut unknown);
    let unknown = unknown.ended(14, None);
    let peer = said(&unknown)[4..7].to_vec();
    let expected =
        ["weft.peer=spiffe://weft.local/ns/shop/sa/users", "network.peer.address=10.0.0.1", "network.peer.port=40000"];
    assert_eq!((peer, unknown.attributes.capacity()), (expected.map(str::to_owned).to_vec(), ATTRIBUTES));
}
