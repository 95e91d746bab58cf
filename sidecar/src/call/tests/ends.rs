//! How a call ends before its answer does: by its caller or by its deadline, in each phase; and what is left of it then.

use std::{sync::Arc, time::Duration};

use tokio::io::duplex;
use weft_mesh::{limits, policy::Idempotency};
use weft_wire::{Code, Limits, Name, StreamId};

use crate::{
    message::failure::ERROR_HEADER,
    shared::survey::Progress,
    trial::{
        mesh::{Mesh, answer, body, grpc, ok, run},
        service::{connect, publish},
    },
};

/// How far a call has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    WaitsForRoute,
    WaitsForConnection,
    Sent,
    /// The endpoint does not take the rest of the request.
    RequestIsStuck,
    AnswerBegun,
    /// The caller does not take the rest of the answer.
    AnswerIsStuck,
}

use Phase::{AnswerBegun, AnswerIsStuck, RequestIsStuck, Sent, WaitsForConnection, WaitsForRoute};

const PHASES: [Phase; 6] = [WaitsForRoute, WaitsForConnection, Sent, RequestIsStuck, AnswerBegun, AnswerIsStuck];

/// Shorter than the waits for a route and for a connection.
const TIMEOUT: Duration = Duration::from_secs(1);

/// More than all windows and buffers on the way hold.
const LARGE: usize = 2 << 20;
/// More than one stream's window.
const PART: usize = 400_000;

/// Each phase, with a request that is complete and with one that is not.
fn cases() -> impl Iterator<Item = (Phase, bool, String)> {
    let case = |phase, is_whole| (phase, is_whole, format!("{phase:?}, request complete: {is_whole}"));
    PHASES.into_iter().flat_map(move |phase| [true, false].map(|is_whole| case(phase, is_whole)))
}

/// A call that has got this far and goes no further.
async fn call(phase: Phase, is_whole: bool, timeout: Option<Duration>) -> (Mesh, StreamId) {
    let is_full = phase == WaitsForConnection;
    let connections = if is_full { limits::CONNECTIONS_PER_ENDPOINT } else { 1 };
    let mut mesh = Mesh::with_connections(1, Idempotency::Idempotent, connections, |limits| {
        if is_full {
            limits.streams = 0;
        }
    })
    .await;
    if phase == WaitsForRoute {
        publish(&mesh.worker, []);
    }
    let mut head = grpc();
    if let Some(timeout) = timeout {
        head.append(Name::GRPC_TIMEOUT, format!("{}m", timeout.as_millis()).as_bytes());
    }
    mesh.endpoints[0].takes_bodies = phase != RequestIsStuck;
    let request = body(if phase == RequestIsStuck { LARGE } else { 1_000 });
    let stream = mesh.call(&head, &request, is_whole).await;
    if matches!(phase, AnswerBegun | AnswerIsStuck) {
        mesh.client.takes_bodies = phase == AnswerBegun;
        let to = mesh.request(0);
        let endpoint = &mut mesh.endpoints[0].core;
        endpoint.respond(to, &answer(), false);
        endpoint.send_data(to, &body(if phase == AnswerIsStuck { LARGE } else { 10 }), false);
        mesh.settle().await;
    }
    let progress = match phase {
        WaitsForRoute => Progress::Routing,
        WaitsForConnection => Progress::Connecting,
        Sent | RequestIsStuck => Progress::AwaitingAnswer,
        AnswerBegun | AnswerIsStuck => Progress::Answering,
    };
    assert_eq!(mesh.calls[0].look().progress, progress, "{phase:?}");
    let has_sent = !matches!(phase, WaitsForRoute | WaitsForConnection);
    assert_eq!(mesh.endpoints[0].requests.len(), usize::from(has_sent), "{phase:?}");
    (mesh, stream)
}

/// What the call waited for comes now, too late.
async fn comes_too_late(mesh: &mut Mesh, phase: Phase) {
    match phase {
        WaitsForRoute => {
            let question = mesh.questions.try_recv().expect("it was asked");
            // If nobody waits for it any more, the answer comes back.
            let _ = question.answer.send(Ok(Arc::clone(&mesh.service)));
        }
        WaitsForConnection => {
            let pool = mesh.proxy.pools.of(&mesh.service.endpoints[0]);
            let limits = Limits::clone(&mesh.worker.wire_limits.mesh);
            mesh.endpoints.insert(0, connect(&mesh.worker, &pool, limits).await);
        }
        // The endpoint takes what there is and answers.
        Sent | RequestIsStuck | AnswerBegun | AnswerIsStuck => {
            let stream = mesh.request(0);
            mesh.endpoints[0].takes_bodies = true;
            mesh.client.takes_bodies = true;
            if matches!(phase, Sent | RequestIsStuck) {
                mesh.endpoints[0].core.respond(stream, &answer(), false);
            }
            mesh.endpoints[0].core.send_trailers(stream, &ok());
        }
    }
    mesh.pass(Duration::from_secs(1)).await;
}

/// What the endpoint has seen of a call that ended: nothing, or a request that was cancelled.
fn endpoint_was_told(mesh: &Mesh, phase: Phase, code: Code, what: &str) {
    let endpoint = &mesh.endpoints[0];
    if matches!(phase, WaitsForRoute | WaitsForConnection) {
        assert!(endpoint.requests.is_empty(), "{what}: the endpoint gets a call that is over");
    } else {
        assert_eq!(endpoint.requests.len(), 1, "{what}: it is not sent again");
        assert_eq!(endpoint.resets, [(mesh.request(0), code)], "{what}: the endpoint is told");
    }
}

#[test]
fn a_caller_may_give_up_a_call_in_each_phase() {
    for (phase, is_whole, what) in cases() {
        run(async {
            // Its deadline must not keep it.
            let (mut mesh, stream) = call(phase, is_whole, Some(2 * TIMEOUT)).await;
            mesh.client.core.reset(stream, Code(0x77));
            mesh.settle().await;
            mesh.holds_nothing(&what);
            comes_too_late(&mut mesh, phase).await;
            endpoint_was_told(&mesh, phase, Code(0x77), &what);
            assert!(mesh.client.resets.is_empty(), "{what}");
            mesh.holds_nothing(&what);
        });
    }
}

#[test]
fn a_callers_connection_may_end_in_each_phase() {
    for (phase, is_whole, what) in cases() {
        run(async {
            let (mut mesh, _) = call(phase, is_whole, None).await;
            mesh.client.io = duplex(1).0;
            mesh.settle().await;
            mesh.holds_nothing(&what);
            comes_too_late(&mut mesh, phase).await;
            endpoint_was_told(&mesh, phase, Code::CANCEL, &what);
            mesh.holds_nothing(&what);
        });
    }
}

/// The caller gets the failure as its answer, or as the trailers of the answer that has begun.
#[test]
fn a_deadline_may_pass_in_each_phase() {
    for (phase, is_whole, what) in cases() {
        run(async {
            let (mut mesh, stream) = call(phase, is_whole, Some(TIMEOUT)).await;
            mesh.pass(TIMEOUT / 2).await;
            assert!(!mesh.calls[0].is_over(), "{what}: it has more time");
            mesh.pass(TIMEOUT).await;
            assert!(mesh.calls[0].is_over(), "{what}");
            comes_too_late(&mut mesh, phase).await;
            endpoint_was_told(&mesh, phase, Code::CANCEL, &what);
            let heads = &mesh.client.heads;
            assert_eq!(heads.len(), if matches!(phase, AnswerBegun | AnswerIsStuck) { 2 } else { 1 }, "{what}");
            let last = heads.last().expect("an answer");
            assert_eq!(last.get(ERROR_HEADER), Some(&b"deadline-exceeded"[..]), "{what}");
            assert_eq!(last.get(Name::GRPC_STATUS), Some(&b"4"[..]), "{what}");
            assert_eq!(mesh.client.ended, [stream], "{what}");
            mesh.holds_nothing(&what);
        });
    }
}

/// A call that waits for a connection takes no place from those behind it when it is given up.
#[test]
fn the_next_call_gets_the_connection_that_a_cancelled_one_waited_for() {
    run(async {
        let (mut mesh, stream) = call(WaitsForConnection, false, None).await;
        mesh.call(&grpc(), b"next", true).await;
        mesh.client.core.reset(stream, Code::CANCEL);
        mesh.settle().await;
        comes_too_late(&mut mesh, WaitsForConnection).await;
        assert_eq!(mesh.endpoints[0].body, b"next");
        mesh.answer(0, b"fine").await;
        assert_eq!(mesh.client.body, b"fine");
        mesh.holds_nothing("both are over");
    });
}

/// How a call ends that has bytes under way in both directions.
#[derive(Clone, Copy, Debug)]
enum Ending {
    CallerResets,
    EndpointResets,
    Trailers,
    /// The last bytes of the answer end it.
    LastBytes,
    /// The answer is complete, and some of it waits for its caller.
    CallerResetsLate,
}

/// If credit for some bytes were lost, the connections would stand still after some 20 MB of such calls.
#[test]
fn nothing_is_held_for_calls_that_ended_with_bytes_under_way() {
    use Ending::{CallerResets, CallerResetsLate, EndpointResets, LastBytes, Trailers};
    run(async {
        let mut mesh = Mesh::new(1, Idempotency::Unknown).await;
        for ending in [CallerResets, EndpointResets, Trailers, LastBytes, CallerResetsLate] {
            for (client_takes, endpoint_takes) in [(true, true), (true, false), (false, true), (false, false)] {
                let what = format!("{ending:?}, client takes {client_takes}, endpoint takes {endpoint_takes}");
                (mesh.client.takes_bodies, mesh.endpoints[0].takes_bodies) = (client_takes, endpoint_takes);
                let stream = mesh.call(&grpc(), &body(PART), false).await;
                let to = mesh.request(0);
                let endpoint = &mut mesh.endpoints[0].core;
                endpoint.respond(to, &answer(), false);
                endpoint.send_data(to, &body(PART), matches!(ending, LastBytes));
                mesh.settle().await;
                match ending {
                    CallerResets => mesh.client.core.reset(stream, Code::CANCEL),
                    EndpointResets => mesh.endpoints[0].core.reset(to, Code::CANCEL),
                    Trailers => mesh.endpoints[0].core.send_trailers(to, &ok()),
                    LastBytes => {}
                    CallerResetsLate => {
                        mesh.endpoints[0].core.send_trailers(to, &ok());
                        mesh.settle().await;
                        mesh.client.core.reset(stream, Code::CANCEL);
                    }
                }
                mesh.settle().await;
                (mesh.client.takes_bodies, mesh.endpoints[0].takes_bodies) = (true, true);
                // Cancels of requests that the endpoint may not have seen are held back for a moment.
                mesh.pass(Duration::from_millis(100)).await;
                mesh.holds_nothing(&what);
            }
        }
        mesh.client.body.clear();
        mesh.endpoints[0].body.clear();
        let whole = body(LARGE);
        mesh.call(&grpc(), &whole, true).await;
        mesh.answer(0, &whole).await;
        assert!(mesh.endpoints[0].body == whole && mesh.client.body == whole, "the connections go on");
        mesh.holds_nothing("all are over");
    });
}

/// Calls start after the whole read, so that a flood of requests that are cancelled at once costs the service nothing
/// (CVE-2023-44487).
#[test]
fn a_request_that_is_cancelled_in_the_same_read_reaches_no_endpoint() {
    run(async {
        let mut mesh = Mesh::new(1, Idempotency::Unknown).await;
        for _ in 0..10 {
            let stream = mesh.client.core.open(&grpc(), true, 0).expect("there is room");
            mesh.client.core.reset(stream, Code::CANCEL);
        }
        mesh.call(&grpc(), b"", true).await;
        assert_eq!((mesh.calls.len(), mesh.endpoints[0].requests.len()), (1, 1), "only the last one");
    });
}
