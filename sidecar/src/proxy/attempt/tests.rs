use std::sync::Arc;

use tokio::task::LocalSet;
use weft_mesh::policy::Idempotency;
use weft_wire::{Headers, Name};

use super::*;
use crate::{
    endpoints::catalog::Route,
    message::failure::ERROR_HEADER,
    trial::{
        self,
        mesh::{self, Mesh, body, grpc, run},
        peer,
        service::{PATH, service},
    },
};

#[tokio::test(start_paused = true)]
async fn a_service_that_never_answers_does_not_take_the_calls_of_others() {
    LocalSet::new()
        .run_until(async {
            let worker = trial::worker();
            let proxy = Proxy::new(Rc::clone(&worker));
            let [silent, other] =
                ["silent", "other"].map(|name| Route::new(Arc::new(service(&worker, name, None)), PATH));
            let callee = worker.callees.of(&silent.service.endpoints[0].spiffe_id);
            let stuck: Vec<_> = std::iter::from_fn(|| {
                let mut slot = worker.call_slot().expect("there is room");
                slot.goes_to(&callee).then_some(slot)
            })
            .collect();
            let (mut client, calls, _serving) = peer::connected(&worker, &worker.local_load, true);
            client.pass(1).await.expect("the connection lives");
            for _ in 0..2 {
                client.call(&peer::post(), 10);
            }
            client.pass(1).await.expect("the connection lives");
            let begun = calls.take();
            let failed = async |call: usize, route: &Rc<Route>| {
                begun[call].tries.set_route(Rc::clone(route));
                match super::run(&proxy, &begun[call]).await {
                    Err(Next::Fail(failure)) => failure,
                    _ => panic!("there is no endpoint that could take it"),
                }
            };
            let refused = failed(0, &silent).await;
            assert_eq!((refused.reason, refused.service.as_deref()), (Reason::Overloaded, Some("silent.shop")));
            assert!(refused.message.starts_with("10000 calls to silent.shop run"), "{}", refused.message);
            assert_eq!(failed(1, &other).await.reason, Reason::ConnectFailed, "it gets as far as its endpoint");
            drop((stuck, begun));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn bytes_that_wait_for_a_connection_count_for_the_callee() {
    LocalSet::new()
        .run_until(async {
            let worker = trial::worker();
            let (mut client, calls, _serving) = peer::connected(&worker, &worker.local_load, true);
            client.pass(1).await.expect("the connection lives");
            let stream = client.call(&peer::post(), 10);
            client.pass(1).await.expect("the connection lives");
            let call = Rc::clone(&calls.borrow()[0]);
            let callee = Rc::default();
            assert!(call.goes_to(&callee));
            call.waits_for(&callee);
            assert_eq!(callee.bytes(), 10);
            client.core.send_data(stream, &[0; 30], false);
            client.pass(1).await.expect("the connection lives");
            assert_eq!(callee.bytes(), 40);
            call.fail(&Failure::deadline_passed());
            assert_eq!(callee.bytes(), 0);
        })
        .await;
}

/// When a call is retried whose first try failed in some way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retried {
    /// The endpoint has not processed it.
    Always,
    /// It is unknown whether the endpoint has processed it.
    IfIdempotent,
    Never,
}

/// A way in which an endpoint fails to answer.
struct Case {
    name: &'static str,
    /// What the endpoint does before it reads the request.
    before: fn(&mut Mesh),
    /// What it does when it has the request.
    after: fn(&mut Mesh),
    retried: Retried,
    /// What the caller gets if the call is not retried: a failure, or a reset with the endpoint's own code.
    error: Option<&'static str>,
}

impl Case {
    const BASE: Self =
        Self { name: "", before: |_| {}, after: |_| {}, retried: Retried::Always, error: Some("connect-failed") };
}

/// The endpoint answers with this head, and nothing more.
fn answers(mesh: &mut Mesh, name: Name, value: &[u8]) {
    let stream = mesh.request(0);
    let mut head = mesh::answer();
    head.append(name, value);
    if name == ERROR_HEADER {
        head.append(Name::GRPC_STATUS, b"14");
    }
    mesh.endpoints[0].core.respond(stream, &head, true);
}

const CASES: [Case; 10] = [
    Case { name: "no connection to it can be made", before: |mesh| mesh.endpoints[0].vanish(), ..Case::BASE },
    Case {
        name: "it goes away before it has read the call",
        before: |mesh| {
            mesh.endpoints[0].is_reading = false;
            mesh.endpoints[0].core.close(Code::NO_ERROR);
        },
        ..Case::BASE
    },
    Case {
        name: "it refuses the stream",
        after: |mesh| {
            let stream = mesh.request(0);
            mesh.endpoints[0].core.reset(stream, Code::REFUSED_STREAM);
        },
        ..Case::BASE
    },
    Case {
        name: "its sidecar says that the service is full",
        after: |mesh| answers(mesh, ERROR_HEADER, b"service-full"),
        error: Some("service-full"),
        ..Case::BASE
    },
    Case {
        name: "its sidecar has lost the service",
        after: |mesh| answers(mesh, ERROR_HEADER, b"connection-broke"),
        retried: Retried::IfIdempotent,
        error: Some("connection-broke"),
        ..Case::BASE
    },
    Case {
        name: "its connection breaks",
        after: |mesh| mesh.endpoints[0].vanish(),
        retried: Retried::IfIdempotent,
        error: Some("connection-broke"),
        ..Case::BASE
    },
    Case {
        name: "its answer breaks the rules of HTTP/2",
        after: |mesh| answers(mesh, Name::CONTENT_LENGTH, b"5"),
        retried: Retried::IfIdempotent,
        error: Some("connection-broke"),
        ..Case::BASE
    },
    Case {
        name: "it resets the call",
        after: |mesh| {
            let stream = mesh.request(0);
            mesh.endpoints[0].core.reset(stream, Code::INTERNAL_ERROR);
        },
        retried: Retried::Never,
        error: None,
        ..Case::BASE
    },
    Case {
        name: "the head of its answer is too long",
        after: |mesh| answers(mesh, Name::other("x-long"), &[b'x'; 80 << 10]),
        retried: Retried::Never,
        error: Some("answer-headers-too-large"),
        ..Case::BASE
    },
    Case {
        name: "the service says UNAVAILABLE",
        after: |mesh| answers(mesh, Name::GRPC_STATUS, b"14"),
        retried: Retried::Never,
        error: Some(""),
        ..Case::BASE
    },
];

/// What the caller was told, if the mesh failed its call.
fn error(mesh: &Mesh) -> Option<&str> {
    let head = mesh.client.heads.first()?;
    Some(head.get(ERROR_HEADER).map_or("", |value| std::str::from_utf8(value).expect("a word")))
}

/// What the tests of retries look at in common: the other endpoint gets the call whole, or not at all.
fn is_seen_by_the_other(mesh: &Mesh, request: &[u8]) -> bool {
    let other = &mesh.endpoints[1];
    assert!(other.requests.len() <= 1, "it gets the call once");
    if !other.requests.is_empty() {
        assert!(other.body == request && other.ended.len() == 1, "it gets the whole request");
    }
    !other.requests.is_empty()
}

#[test]
fn a_call_is_retried_only_where_that_does_no_harm() {
    for case in CASES {
        for idempotency in [Idempotency::Unknown, Idempotency::Idempotent] {
            let what = format!("{}, {idempotency:?}", case.name);
            run(async {
                let mut mesh = Mesh::new(2, idempotency).await;
                (case.before)(&mut mesh);
                mesh.settle().await;
                mesh.prefer(0);
                let request = body(100);
                let stream = mesh.call(&grpc(), &request, true).await;
                if !mesh.endpoints[0].requests.is_empty() {
                    (case.after)(&mut mesh);
                    mesh.settle().await;
                }
                let is_retried = match case.retried {
                    Retried::Always => true,
                    Retried::IfIdempotent => idempotency == Idempotency::Idempotent,
                    Retried::Never => false,
                };
                assert_eq!(is_seen_by_the_other(&mesh, &request), is_retried, "{what}");
                assert_eq!(mesh.retries(), u64::from(is_retried), "{what}");
                if is_retried {
                    assert!(mesh.client.heads.is_empty(), "{what}: the caller hears nothing of the first try");
                    mesh.answer(1, b"fine").await;
                    assert_eq!(mesh.client.heads, [mesh::answer(), mesh::ok()], "{what}");
                    assert_eq!(mesh.client.body, b"fine", "{what}");
                } else if case.error.is_some() {
                    assert_eq!(error(&mesh), case.error, "{what}");
                } else {
                    assert_eq!(mesh.client.resets, [(stream, Code::INTERNAL_ERROR)], "{what}");
                }
                mesh.holds_nothing(&what);
            });
        }
    }
}

#[test]
fn a_call_is_tried_twice_at_most_once_it_was_sent() {
    run(async {
        let mut mesh = Mesh::new(4, Idempotency::Idempotent).await;
        mesh.call(&grpc(), b"hello", true).await;
        for _ in 0..4 {
            for endpoint in &mut mesh.endpoints {
                if let Some((stream, _)) = endpoint.requests.last() {
                    endpoint.core.reset(*stream, Code::REFUSED_STREAM);
                }
            }
            mesh.settle().await;
        }
        let sent: usize = mesh.endpoints.iter().map(|endpoint| endpoint.requests.len()).sum();
        assert_eq!((sent, error(&mesh)), (limits::TRIES as usize, Some("connect-failed")));
        mesh.holds_nothing("refused everywhere");
    });
}

#[test]
fn a_call_that_reaches_no_endpoint_is_tried_at_four() {
    run(async {
        let mut mesh = Mesh::new(6, Idempotency::Unknown).await;
        mesh.endpoints.iter_mut().for_each(peer::Peer::vanish);
        mesh.settle().await;
        mesh.call(&grpc(), b"hello", true).await;
        assert_eq!((mesh.calls[0].tries.count(), error(&mesh)), (CONNECTS, Some("connect-failed")));
        mesh.holds_nothing("nothing is reached");
    });
}

/// Only what is kept can be sent again, and only so much is kept of one call.
#[test]
fn a_request_that_was_sent_and_is_too_long_to_be_kept_is_not_retried() {
    for (more, is_retried) in [(0, true), (1, false)] {
        run(async {
            let mut mesh = Mesh::new(2, Idempotency::Idempotent).await;
            mesh.prefer(0);
            let request = body(limits::REPLAY_BYTES_PER_CALL + more);
            mesh.call(&grpc(), &request, true).await;
            assert_eq!(mesh.endpoints[0].body, request);
            let stream = mesh.request(0);
            mesh.endpoints[0].core.reset(stream, Code::REFUSED_STREAM);
            mesh.settle().await;
            assert_eq!(is_seen_by_the_other(&mesh, &request), is_retried);
            assert_eq!(error(&mesh), (!is_retried).then_some("connect-failed"));
        });
    }
}

/// The head of the second try says how much time is left then.
#[test]
fn a_retry_has_the_time_that_is_left() {
    run(async {
        let mut mesh = Mesh::new(2, Idempotency::Unknown).await;
        mesh.prefer(0);
        let mut head = grpc();
        head.append(Name::GRPC_TIMEOUT, b"10S");
        mesh.call(&head, b"hello", true).await;
        mesh.pass(std::time::Duration::from_secs(4)).await;
        let stream = mesh.request(0);
        mesh.endpoints[0].core.reset(stream, Code::REFUSED_STREAM);
        mesh.settle().await;
        let left = |endpoint: usize| {
            let head: &Headers = &mesh.endpoints[endpoint].requests[0].1;
            let value = String::from_utf8(head.get(Name::GRPC_TIMEOUT).expect("a timeout").to_vec()).expect("digits");
            value.strip_suffix('u').expect("microseconds").parse::<u64>().expect("a number") / 1_000_000
        };
        assert_eq!((left(0), left(1)), (10, 6), "in whole seconds");
    });
}

/// It is the caller's fault: another endpoint would say the same, and no breaker counts it.
#[test]
fn a_call_that_an_endpoint_has_no_form_for_is_malformed_everywhere() {
    run(async {
        let mut mesh = Mesh::new(2, Idempotency::Idempotent).await;
        mesh.prefer(0);
        let request = body(100);
        mesh.call(&grpc(), &request, true).await;
        mesh.calls[0].missed(Miss::Malformed("it has no form there".into()));
        mesh.settle().await;
        assert!(!is_seen_by_the_other(&mesh, &request));
        assert_eq!((error(&mesh), mesh.retries()), (Some("malformed"), 0));
        mesh.holds_nothing("it has no form");
        let now = mesh.worker.moment();
        let of_endpoint = mesh.service.endpoints[0].breaker.statistics(now);
        let of_service = mesh.service.breaker.statistics(now);
        assert_eq!([of_endpoint.calls, of_service.calls], [0, 0], "a caller opens no breaker so");
    });
}

#[test]
fn a_call_that_the_sidecar_answers_itself_is_malformed_without_a_route() {
    let Next::Fail(failure) = unrouted(Miss::Malformed("it has no form there".into())) else {
        panic!("it fails");
    };
    assert_eq!(failure.reason, Reason::Malformed);
    assert!(failure.message.ends_with("it has no form there"), "{}", failure.message);
}
