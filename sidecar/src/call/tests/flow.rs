//! What a call carries from one side to the other: bytes in both directions, no faster than they are taken, and the end
//! of each direction.

use weft_mesh::{limits, policy::Idempotency};
use weft_wire::{Code, Headers, Name};

use crate::trial::{
    mesh::{Mesh, answer, body, grpc, ok, run},
    peer::post,
};

/// More than all windows and buffers on the way hold.
const LARGE: usize = 4 << 20;

/// What the sidecar may hold of one direction of a call: the window that it gives the sender, and what it may have
/// written that the receiver has not read.
const HELD: usize = limits::STREAM_WINDOW_BYTES as usize + limits::SEND_BUFFER_BYTES;

#[test]
fn a_request_is_sent_no_faster_than_the_endpoint_takes_it() {
    run(async {
        let mut mesh = Mesh::new(1, Idempotency::Unknown).await;
        let request = body(LARGE);
        mesh.endpoints[0].takes_bodies = false;
        mesh.call(&grpc(), &request, true).await;
        let (arrived, held) = (mesh.endpoints[0].body.len(), mesh.worker.accounts.outbound.held());
        assert_eq!(arrived, mesh.worker.wire_limits.mesh.stream_window_bytes as usize, "as much as its window");
        assert!((1..=HELD).contains(&held), "{held} bytes are held");
        let unsent = LARGE - arrived - held;
        assert!(unsent > LARGE / 2, "the caller is held back");

        mesh.endpoints[0].takes_bodies = true;
        mesh.settle().await;
        assert!(mesh.endpoints[0].body == request, "all of it arrives, in order");
        assert_eq!(mesh.endpoints[0].ended.len(), 1);
        mesh.answer(0, b"fine").await;
        mesh.holds_nothing("it is over");
    });
}

#[test]
fn an_answer_is_sent_no_faster_than_the_caller_takes_it() {
    run(async {
        let mut mesh = Mesh::new(1, Idempotency::Unknown).await;
        let whole = body(LARGE);
        mesh.client.takes_bodies = false;
        mesh.call(&grpc(), b"", true).await;
        mesh.answer(0, &whole).await;
        let held = mesh.worker.accounts.held();
        assert!((1..=2 * HELD).contains(&held), "{held} bytes are held");
        assert!(mesh.client.body.len() + held < LARGE / 2, "the endpoint is held back");
        assert!(!mesh.calls[0].is_over());

        mesh.client.takes_bodies = true;
        mesh.settle().await;
        assert!(mesh.client.body == whole, "all of it arrives, in order");
        assert_eq!(mesh.client.heads, [answer(), ok()]);
        mesh.holds_nothing("it is over");
    });
}

/// A stream of gRPC may end on one side long before the other.
#[test]
fn either_direction_may_end_before_the_other() {
    run(async {
        // The caller ends first.
        let mut mesh = Mesh::new(1, Idempotency::Unknown).await;
        let stream = mesh.call(&grpc(), b"one", false).await;
        mesh.client.core.send_data(stream, b"two", true);
        mesh.settle().await;
        let endpoint = &mut mesh.endpoints[0];
        assert_eq!((&*endpoint.body, endpoint.ended.len()), (&b"onetwo"[..], 1));
        let to = mesh.request(0);
        mesh.endpoints[0].core.respond(to, &answer(), false);
        for part in [&b"three"[..], b"four"] {
            mesh.endpoints[0].core.send_data(to, part, false);
            mesh.settle().await;
        }
        assert!(mesh.client.body == b"threefour" && !mesh.calls[0].is_over(), "parts arrive one by one");
        mesh.endpoints[0].core.send_trailers(to, &ok());
        mesh.settle().await;
        assert_eq!(mesh.client.heads, [answer(), ok()]);
        assert!(mesh.client.resets.is_empty() && mesh.endpoints[0].resets.is_empty());
        mesh.holds_nothing("the caller ended first");
    });
}

/// The caller need not send the rest of a request that is answered (RFC 9113, section 8.1), and what it has sent is no
/// burden for its connection.
#[test]
fn an_answer_may_come_before_the_end_of_the_request() {
    for answer_bytes in [0, 100, LARGE] {
        run(async {
            let mut mesh = Mesh::new(1, Idempotency::Unknown).await;
            mesh.endpoints[0].takes_bodies = false;
            mesh.client.takes_bodies = answer_bytes < LARGE;
            let stream = mesh.call(&grpc(), &body(LARGE), true).await;
            let whole = body(answer_bytes);
            mesh.answer(0, &whole).await;
            mesh.client.takes_bodies = true;
            mesh.settle().await;
            assert_eq!(mesh.client.heads, [answer(), ok()], "after {answer_bytes} bytes");
            assert!(mesh.client.body == whole, "the whole answer, {answer_bytes} bytes");
            // While the answer still waits for its caller, the rest of the request is taken and discarded instead.
            let told: &[_] = if answer_bytes < LARGE { &[(stream, Code::NO_ERROR)] } else { &[] };
            assert_eq!(mesh.client.resets, told, "it need not send the rest: {answer_bytes} bytes");
            assert_eq!(mesh.client.core.streams(), 0);
            assert_eq!(mesh.endpoints[0].resets, [(mesh.request(0), Code::CANCEL)]);
            mesh.holds_nothing("it is over");

            // Its connections carry on.
            mesh.endpoints[0].takes_bodies = true;
            mesh.client.body.clear();
            mesh.endpoints[0].body.clear();
            let next = body(LARGE);
            mesh.call(&grpc(), &next, true).await;
            mesh.answer(0, &next).await;
            assert!(mesh.endpoints[0].body == next && mesh.client.body == next);
        });
    }
}

/// A service that resets its answer has not ended it: the caller must not take the part for the whole.
#[test]
fn a_reset_during_the_answer_arrives_as_a_reset() {
    run(async {
        for head in [grpc(), post()] {
            let mut mesh = Mesh::new(1, Idempotency::Idempotent).await;
            let stream = mesh.call(&head, b"hello", true).await;
            let to = mesh.request(0);
            let endpoint = &mut mesh.endpoints[0].core;
            endpoint.respond(to, &answer(), false);
            endpoint.send_data(to, b"some", false);
            mesh.settle().await;
            mesh.endpoints[0].core.reset(to, Code(0x77));
            mesh.settle().await;
            assert_eq!((&*mesh.client.body, &mesh.client.resets[..]), (&b"some"[..], &[(stream, Code(0x77))][..]));
            assert!(mesh.client.ended.is_empty());
            mesh.holds_nothing("it was reset");
        }
    });
}

/// gRPC has a place for a failure behind a part of the answer; other calls have none, so they are reset.
#[test]
fn a_connection_that_breaks_during_the_answer_is_told_in_the_callers_protocol() {
    for is_grpc in [true, false] {
        run(async {
            let mut mesh = Mesh::new(2, Idempotency::Idempotent).await;
            mesh.prefer(0);
            let stream = mesh.call(&if is_grpc { grpc() } else { post() }, b"hello", true).await;
            let to = mesh.request(0);
            let mut head = Headers::new();
            head.set(Name::STATUS, b"200");
            let endpoint = &mut mesh.endpoints[0].core;
            endpoint.respond(to, &if is_grpc { answer() } else { head }, false);
            endpoint.send_data(to, b"some", false);
            mesh.settle().await;
            mesh.endpoints[0].vanish();
            mesh.settle().await;
            assert_eq!(mesh.client.body, b"some");
            assert!(mesh.endpoints[1].requests.is_empty(), "the caller has a part of the answer: no retry");
            if is_grpc {
                let status = mesh.client.heads[1].get(Name::GRPC_STATUS);
                assert_eq!((status, &mesh.client.ended[..]), (Some(&b"14"[..]), &[stream][..]));
            } else {
                assert_eq!(mesh.client.resets, [(stream, Code::INTERNAL_ERROR)]);
            }
            mesh.holds_nothing("the connection broke");
        });
    }
}

/// An answer of plain HTTP has no trailers: its last bytes end it.
#[test]
fn the_last_bytes_of_an_answer_are_passed_on_and_given_back() {
    run(async {
        let mut mesh = Mesh::new(1, Idempotency::Unknown).await;
        let stream = mesh.call(&post(), b"hello", true).await;
        let to = mesh.request(0);
        let mut head = Headers::new();
        head.set(Name::STATUS, b"200");
        mesh.endpoints[0].core.respond(to, &head, false);
        mesh.settle().await;
        mesh.endpoints[0].core.send_data(to, &body(1_000), true);
        mesh.settle().await;
        assert!(mesh.client.body == body(1_000) && mesh.client.ended == [stream]);
        mesh.holds_nothing("it ended with its last bytes");
    });
}
