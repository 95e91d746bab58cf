//! Two tries of one call at the same time: which of them counts, what becomes of the other, and when there is no second.

use std::{
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{io::duplex, time::advance};
use weft_contracts::weft::discovery::v1::Health;
use weft_mesh::{
    limits,
    policy::{BreakerPolicy, SlowCall},
};
use weft_wire::{Code, Headers, Limits, Name, StreamId};

use crate::{
    endpoints::catalog::{Endpoint, Service},
    message::failure::ERROR_HEADER,
    policy::breaker::{Breaker, Permit, Statistics, Verdict},
    trial::{
        mesh::{Mesh, answer, body, grpc, ok, run},
        peer::Peer,
        service,
    },
};

const AFTER: Duration = Duration::from_millis(100);

/// A service with this many endpoints, whose calls are hedged.
async fn mesh(endpoints: usize) -> Mesh {
    with_change(endpoints, |_| {}).await
}

async fn with_change(endpoints: usize, change: impl FnOnce(&mut Service)) -> Mesh {
    with_limits(endpoints, change, |_| {}).await
}

async fn with_limits(endpoints: usize, change: impl FnOnce(&mut Service), limit: impl Fn(&mut Limits)) -> Mesh {
    let make = |worker: &_| {
        let mut service = service::hedged(worker, endpoints, AFTER);
        change(&mut service);
        service
    };
    Mesh::with_service(make, 1, limit).await
}

/// Has all breakers of a service follow this policy.
fn with_breakers(policy: BreakerPolicy) -> impl FnOnce(&mut Service) {
    move |service| {
        for endpoint in &mut service.endpoints {
            Arc::get_mut(endpoint).expect("it was just made").breaker = Breaker::new(policy.clone());
        }
        service.breaker = Arc::new(Breaker::new(policy));
    }
}

/// The client's call is at one endpoint, and a hedge is due. Gives the place of that endpoint and of another.
async fn sent(mesh: &mut Mesh, head: &Headers, request: &[u8]) -> (usize, usize, StreamId) {
    let stream = mesh.call(head, request, true).await;
    let mut places = 0..mesh.endpoints.len();
    let first = places.find(|place| !mesh.endpoints[*place].requests.is_empty()).expect("it was sent");
    (first, usize::from(first == 0), stream)
}

/// The call of the client is at two endpoints, which do not answer. The places of the first and the second.
async fn hedged(mesh: &mut Mesh) -> (usize, usize, StreamId) {
    let (first, _, stream) = sent(mesh, &grpc(), b"hello").await;
    mesh.pass(2 * AFTER).await;
    let is_second = |place: &usize| *place != first && !mesh.endpoints[*place].requests.is_empty();
    let second = (0..mesh.endpoints.len()).find(is_second).expect("it is sent to another, too");
    (first, second, stream)
}

/// How often the call was sent.
fn requests(mesh: &Mesh) -> usize {
    mesh.endpoints.iter().map(|endpoint| endpoint.requests.len()).sum()
}

/// The reason of the failure that the client got.
fn error(mesh: &Mesh) -> Option<&[u8]> {
    mesh.client.heads.first()?.get(ERROR_HEADER)
}

/// What the breaker of an endpoint has counted.
fn counted(mesh: &Mesh, place: usize) -> Statistics {
    mesh.service.endpoints[place].breaker.statistics(mesh.worker.moment())
}

#[test]
fn the_second_try_wins_if_its_answer_begins_first() {
    run(async {
        let mut mesh = mesh(2).await;
        let mut head = grpc();
        head.append(Name::GRPC_TIMEOUT, b"10S");
        let (first, second, _) = sent(&mut mesh, &head, b"hello").await;
        mesh.pass(AFTER / 2).await;
        assert_eq!((requests(&mesh), mesh.hedges()), (1, (0, 0)), "it is not due yet");
        mesh.pass(AFTER).await;
        assert_eq!((requests(&mesh), mesh.hedges()), (2, (1, 0)));
        assert_eq!((&*mesh.endpoints[second].body, mesh.endpoints[second].ended.len()), (&b"hello"[..], 1));
        let left = |place: usize| {
            let value = mesh.endpoints[place].requests[0].1.get(Name::GRPC_TIMEOUT).expect("a timeout");
            let text = std::str::from_utf8(value).expect("digits").strip_suffix('u').expect("microseconds");
            Duration::from_micros(text.parse().expect("a number"))
        };
        assert!(left(second) <= left(first) - AFTER, "it has the time that is left");
        let callee = mesh.worker.callees.of(&mesh.service.endpoints[0].spiffe_id);
        let counted = (mesh.worker.calls.outbound.get(), callee.calls(), mesh.calls[0].look().tries);
        assert_eq!(counted, (2, 2, 2), "each try counts, for its callee as well");

        let to = mesh.request(second);
        mesh.endpoints[second].core.respond(to, &answer(), false);
        mesh.settle().await;
        assert_eq!(mesh.endpoints[first].resets, [(mesh.request(first), Code::CANCEL)], "the other is cancelled");
        assert_eq!((mesh.worker.calls.outbound.get(), callee.calls(), mesh.hedges()), (1, 1, (1, 1)));
        // All that follows comes from the second, however much it is.
        let whole = body(1 << 20);
        mesh.client.takes_bodies = false;
        mesh.endpoints[second].core.send_data(to, &whole, false);
        mesh.settle().await;
        mesh.client.takes_bodies = true;
        mesh.endpoints[second].core.send_trailers(to, &ok());
        mesh.settle().await;
        assert_eq!(mesh.client.heads, [answer(), ok()]);
        assert!(mesh.client.body == whole && mesh.endpoints[second].resets.is_empty());
        assert_eq!(mesh.retries(), 0);
        mesh.holds_nothing("the second has won");
    });
}

#[test]
fn the_first_try_wins_if_its_answer_begins_first() {
    run(async {
        let mut mesh = mesh(2).await;
        let (first, second, _) = hedged(&mut mesh).await;
        mesh.answer(first, b"fine").await;
        assert_eq!((&mesh.client.heads[..], &*mesh.client.body), (&[answer(), ok()][..], &b"fine"[..]));
        assert_eq!(mesh.endpoints[second].resets, [(mesh.request(second), Code::CANCEL)]);
        assert_eq!(mesh.hedges(), (1, 0));
        mesh.holds_nothing("the first has won");
    });
}

#[test]
fn an_answer_without_a_body_wins_as_well() {
    for is_first in [true, false] {
        run(async {
            let mut mesh = mesh(2).await;
            let (first, second, _) = hedged(&mut mesh).await;
            let winner = if is_first { first } else { second };
            let mut head = answer();
            head.append(Name::GRPC_STATUS, b"5");
            let to = mesh.request(winner);
            mesh.endpoints[winner].core.respond(to, &head, true);
            mesh.settle().await;
            assert_eq!(mesh.client.heads, [head], "also one that says no");
            mesh.holds_nothing("it is over");
        });
    }
}

/// A slow answer of a stream is no reason for a hedge once it has begun.
#[test]
fn a_call_that_is_answered_in_time_is_not_hedged() {
    run(async {
        let mut mesh = mesh(2).await;
        let (first, _, _) = sent(&mut mesh, &grpc(), b"hello").await;
        let to = mesh.request(first);
        mesh.endpoints[first].core.respond(to, &answer(), false);
        mesh.pass(5 * AFTER).await;
        mesh.endpoints[first].core.send_trailers(to, &ok());
        mesh.pass(5 * AFTER).await;
        assert_eq!((requests(&mesh), mesh.hedges()), (1, (0, 0)));
        mesh.holds_nothing("it is over");
    });
}

/// Has the try at the endpoint in this place fail.
type Fail = fn(&mut Mesh, usize);

/// The timer holds the call, so it must not outlive what it waits for.
#[test]
fn no_timer_is_left_when_a_call_is_answered_or_retried() {
    for is_retried in [false, true] {
        run(async {
            let mut mesh = mesh(2).await;
            let (first, second, _) = sent(&mut mesh, &grpc(), b"hello").await;
            if is_retried {
                let stream = mesh.request(first);
                mesh.endpoints[first].core.reset(stream, Code::REFUSED_STREAM);
                mesh.settle().await;
            }
            mesh.answer(if is_retried { second } else { first }, b"fine").await;
            mesh.holds_nothing("it is over");
            assert_eq!(mesh.retries(), u64::from(is_retried));
        });
    }
}

/// Ways in which a try fails.
const MISSES: [(&str, Fail); 5] = [
    ("it refuses the stream", |mesh, place| {
        let stream = mesh.request(place);
        mesh.endpoints[place].core.reset(stream, Code::REFUSED_STREAM);
    }),
    ("it resets the stream", |mesh, place| {
        let stream = mesh.request(place);
        mesh.endpoints[place].core.reset(stream, Code::INTERNAL_ERROR);
    }),
    ("its connection breaks", |mesh, place| mesh.endpoints[place].vanish()),
    ("its service is full", |mesh, place| {
        let stream = mesh.request(place);
        let mut head = answer();
        head.append(Name::GRPC_STATUS, b"14");
        head.append(ERROR_HEADER, b"service-full");
        mesh.endpoints[place].core.respond(stream, &head, true);
    }),
    ("the head of its answer is too long", |mesh, place| {
        let stream = mesh.request(place);
        let mut head = answer();
        head.append(Name::other("x-long"), &[b'x'; 80 << 10]);
        mesh.endpoints[place].core.respond(stream, &head, true);
    }),
];

#[test]
fn if_one_try_fails_the_other_goes_on_alone() {
    for (what, fail) in MISSES {
        for is_first in [true, false] {
            let what = format!("{what}, the first: {is_first}");
            run(async {
                let mut mesh = mesh(3).await;
                let (first, second, _) = hedged(&mut mesh).await;
                let (loser, winner) = if is_first { (first, second) } else { (second, first) };
                fail(&mut mesh, loser);
                mesh.settle().await;
                assert!(mesh.client.heads.is_empty() && mesh.client.resets.is_empty(), "{what}: the caller waits");
                assert_eq!((requests(&mesh), mesh.retries()), (2, 0), "{what}: no third try");
                assert_eq!(mesh.hedges(), (1, u64::from(is_first)), "{what}");
                mesh.pass(5 * AFTER).await;
                assert_eq!(requests(&mesh), 2, "{what}: nor later");
                mesh.answer(winner, b"fine").await;
                let got = (&mesh.client.heads[..], &*mesh.client.body);
                assert_eq!(got, (&[answer(), ok()][..], &b"fine"[..]), "{what}");
                mesh.holds_nothing(&what);
            });
        }
    }
}

#[test]
fn if_both_tries_fail_the_call_fails() {
    for (what, fail) in MISSES {
        for is_first in [true, false] {
            let what = format!("{what}, the first before the second: {is_first}");
            run(async {
                let mut mesh = mesh(3).await;
                let (first, second, stream) = hedged(&mut mesh).await;
                let (one, other) = if is_first { (first, second) } else { (second, first) };
                fail(&mut mesh, one);
                mesh.settle().await;
                fail(&mut mesh, other);
                mesh.settle().await;
                assert_eq!(requests(&mesh), limits::TRIES as usize, "{what}: it is not sent a third time");
                let is_told = error(&mesh).is_some() || mesh.client.resets == [(stream, Code::INTERNAL_ERROR)];
                assert!(is_told, "{what}: {:?} {:?}", mesh.client.heads, mesh.client.resets);
                mesh.holds_nothing(&what);
            });
        }
    }
}

/// How a call ends before any answer comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Deadline,
    CallerResets,
    CallersConnectionEnds,
}

#[test]
fn both_tries_end_with_their_call() {
    use Ending::{CallerResets, CallersConnectionEnds, Deadline};
    for ending in [Deadline, CallerResets, CallersConnectionEnds] {
        for is_sent in [true, false] {
            let what = format!("{ending:?}, the second is sent: {is_sent}");
            run(async {
                let mut mesh = mesh(2).await;
                let mut head = grpc();
                if ending == Deadline {
                    // The hedge is due in the middle of the time, or at its end.
                    head.append(Name::GRPC_TIMEOUT, if is_sent { b"300m" } else { b"100m" });
                }
                let (first, second, stream) = sent(&mut mesh, &head, b"hello").await;
                mesh.pass(if is_sent { 2 * AFTER } else { AFTER / 2 }).await;
                match ending {
                    Deadline => mesh.pass(2 * AFTER).await,
                    CallerResets => mesh.client.core.reset(stream, Code(0x77)),
                    CallersConnectionEnds => mesh.client.io = duplex(1).0,
                }
                mesh.settle().await;
                assert!(mesh.calls[0].is_over(), "{what}");
                if is_sent {
                    assert_eq!(mesh.endpoints[second].resets, [(mesh.request(second), Code::CANCEL)], "{what}");
                }
                let code = if ending == CallerResets { Code(0x77) } else { Code::CANCEL };
                assert_eq!(mesh.endpoints[first].resets, [(mesh.request(first), code)], "{what}");
                if ending == Deadline {
                    assert_eq!(error(&mesh), Some(&b"deadline-exceeded"[..]), "{what}");
                }
                // Neither a late hedge nor a late answer does anything.
                mesh.pass(5 * AFTER).await;
                if ending != Deadline {
                    assert_eq!(requests(&mesh), 1 + usize::from(is_sent), "{what}");
                }
                mesh.answer(first, b"late").await;
                assert!(mesh.client.body.is_empty(), "{what}");
                mesh.holds_nothing(&what);
            });
        }
    }
}

/// What keeps a call from being hedged.
struct Obstacle {
    name: &'static str,
    endpoints: usize,
    /// What happens once the call is at the endpoint in this place.
    after: fn(&mut Mesh, usize),
    request: usize,
    is_whole: bool,
}

impl Obstacle {
    const BASE: Self = Self { name: "", endpoints: 2, after: |_, _| {}, request: 100, is_whole: true };
}

fn other(mesh: &Mesh, first: usize) -> &Endpoint {
    &mesh.service.endpoints[usize::from(first == 0)]
}

fn open(breaker: &Breaker, mesh: &Mesh) {
    for _ in 0..5 {
        breaker.settle(Permit::Call, Verdict::Failure, mesh.worker.moment());
    }
}

const OBSTACLES: [Obstacle; 9] = [
    Obstacle { name: "there is no other endpoint", endpoints: 1, ..Obstacle::BASE },
    Obstacle { name: "the request goes on", is_whole: false, ..Obstacle::BASE },
    Obstacle { name: "it was not kept", request: limits::REPLAY_BYTES_PER_CALL + 1, ..Obstacle::BASE },
    Obstacle {
        name: "the other endpoint is down",
        after: |mesh, first| other(mesh, first).set_health(Health::Down, false),
        ..Obstacle::BASE
    },
    Obstacle {
        name: "it is shunned",
        after: |mesh, first| other(mesh, first).shun(mesh.worker.moment()),
        ..Obstacle::BASE
    },
    Obstacle {
        name: "its breaker is open",
        after: |mesh, first| open(&other(mesh, first).breaker, mesh),
        ..Obstacle::BASE
    },
    Obstacle {
        name: "the breaker of the service is open",
        after: |mesh, _| open(&mesh.service.breaker, mesh),
        ..Obstacle::BASE
    },
    Obstacle {
        name: "there is no connection to it",
        after: |mesh, first| mesh.endpoints[usize::from(first == 0)].vanish(),
        ..Obstacle::BASE
    },
    Obstacle {
        name: "the call was sent twice already",
        endpoints: 3,
        after: |mesh, first| {
            let stream = mesh.request(first);
            mesh.endpoints[first].core.reset(stream, Code::REFUSED_STREAM);
        },
        ..Obstacle::BASE
    },
];

#[test]
fn a_call_is_hedged_only_where_it_does_no_harm() {
    for case in OBSTACLES {
        run(async {
            let mut mesh = mesh(case.endpoints).await;
            let request = body(case.request);
            let stream = mesh.call(&grpc(), &request, case.is_whole).await;
            let is_called = |place: &usize| !mesh.endpoints[*place].requests.is_empty();
            let first = (0..case.endpoints).find(is_called).expect("it was sent");
            (case.after)(&mut mesh, first);
            mesh.settle().await;
            let sent = requests(&mesh);
            mesh.pass(5 * AFTER).await;
            assert_eq!((requests(&mesh), mesh.hedges()), (sent, (0, 0)), "{}", case.name);
            if !case.is_whole {
                mesh.client.core.send_data(stream, b"", true);
            }
            mesh.settle().await;
            let last = mesh.endpoints.iter().position(|endpoint| endpoint.core.streams() > 0).expect("it waits");
            mesh.answer(last, b"fine").await;
            assert_eq!(mesh.client.body, b"fine", "{}", case.name);
            mesh.holds_nothing(case.name);
        });
    }
}

/// A hedge never waits: not behind calls that wait for room either.
#[test]
fn a_hedge_takes_no_place_in_a_queue() {
    run(async {
        let mut mesh = with_limits(2, |_| {}, |limits| limits.streams = 1).await;
        // Each of the endpoints has a call, and takes no more.
        let one = mesh.call(&grpc(), b"one", true).await;
        mesh.call(&grpc(), b"two", true).await;
        assert!(mesh.endpoints.iter().all(|endpoint| endpoint.requests.len() == 1));
        mesh.pass(3 * AFTER).await;
        assert_eq!((requests(&mesh), mesh.hedges()), (2, (0, 0)));
        mesh.client.core.reset(one, Code::CANCEL);
        mesh.pass(3 * AFTER).await;
        assert_eq!(requests(&mesh), 2, "none has waited for room");
        let left = mesh.endpoints.iter().position(|endpoint| endpoint.resets.is_empty()).expect("the other call");
        mesh.answer(left, b"fine").await;
        mesh.holds_nothing("both are over");
    });
}

/// The time begins when the whole request was sent.
#[test]
fn a_request_that_comes_in_parts_is_hedged_later() {
    run(async {
        let mut mesh = mesh(2).await;
        let stream = mesh.call(&grpc(), b"hel", false).await;
        let later = async |mesh: &mut Mesh, ms: u64| {
            advance(Duration::from_millis(ms)).await;
            mesh.settle().await;
        };
        later(&mut mesh, 90).await;
        mesh.client.core.send_data(stream, b"lo", true);
        mesh.settle().await;
        later(&mut mesh, 15).await;
        assert_eq!(requests(&mesh), 1, "100 ms after its first part");
        later(&mut mesh, 80).await;
        assert_eq!(requests(&mesh), 1, "nearly 100 ms after its last part");
        later(&mut mesh, 10).await;
        assert_eq!(requests(&mesh), 2);
        assert!(mesh.endpoints.iter().all(|endpoint| endpoint.body == b"hello" && endpoint.ended.len() == 1));
        mesh.answer(0, b"fine").await;
        mesh.holds_nothing("it is over");
    });
}

/// The body of a hedge may wait for its endpoint's window, as that of any try.
#[test]
fn a_hedge_whose_body_waits_is_sent_whole_unless_it_is_answered_before() {
    for is_taken in [true, false] {
        run(async {
            let mut mesh = with_limits(2, |_| {}, |limits| limits.stream_window_bytes = 10).await;
            mesh.endpoints.iter_mut().for_each(|endpoint| endpoint.takes_bodies = false);
            let request = body(100);
            let (first, second, _) = sent(&mut mesh, &grpc(), &request).await;
            // One of the two takes it all.
            mesh.endpoints[first].takes_bodies = !is_taken;
            mesh.pass(2 * AFTER).await;
            assert_eq!((mesh.hedges(), mesh.endpoints[second].body.len()), ((1, 0), 10));
            mesh.endpoints[second].takes_bodies = is_taken;
            mesh.settle().await;
            assert_eq!(mesh.endpoints[second].body, request[..if is_taken { 100 } else { 10 }]);
            mesh.answer(second, b"fine").await;
            assert_eq!((&*mesh.client.body, mesh.hedges()), (&b"fine"[..], (1, 1)));
            assert_eq!(mesh.endpoints[second].resets.is_empty(), is_taken, "what it does not take is not sent");
            assert_eq!(mesh.endpoints[second].core.streams(), 0);
            mesh.holds_nothing("it is over");
        });
    }
}

/// However slow the service is, hedges add no more than a tenth to its load.
#[test]
fn hedges_have_a_budget() {
    run(async {
        let mut mesh = mesh(2).await;
        let calls = 2 * limits::HEDGES_SAVED;
        for _ in 0..calls {
            mesh.call(&grpc(), b"", true).await;
            mesh.pass(2 * AFTER).await;
        }
        // The calls pay for one more than was saved.
        let hedges = u64::from(limits::HEDGES_SAVED + 1);
        assert_eq!((mesh.hedges().0, requests(&mesh) as u64), (hedges, u64::from(calls) + hedges));
        let refused = mesh.worker.shared.metrics.times_reached("CALLS_PER_HEDGE");
        assert_eq!(refused, u64::from(calls) - hedges);
        mesh.client.io = duplex(1).0;
        mesh.settle().await;
        mesh.holds_nothing("the caller is gone");
    });
}

/// Otherwise an endpoint that never answers would never be taken out, as others answer its calls.
#[test]
fn a_try_that_was_outrun_says_nothing_unless_it_was_slow() {
    for (slow_after, is_slow) in [(AFTER / 2, true), (10 * AFTER, false)] {
        for is_first in [true, false] {
            run(async {
                let slow_call = Some(SlowCall { longer_than: slow_after, ratio: 1.0 });
                let policy = BreakerPolicy { slow_call, ..BreakerPolicy::default() };
                let mut mesh = with_change(2, with_breakers(policy)).await;
                let (first, second, _) = hedged(&mut mesh).await;
                // The second is as old as that, too.
                mesh.pass(AFTER).await;
                let (loser, winner) = if is_first { (first, second) } else { (second, first) };
                mesh.answer(winner, b"fine").await;
                let outrun = counted(&mesh, loser);
                assert_eq!((outrun.calls, outrun.slow, outrun.failures), (u32::from(is_slow), u32::from(is_slow), 0));
                let won = counted(&mesh, winner);
                assert_eq!((won.calls, won.slow, won.failures), (1, u32::from(is_slow), 0), "by its own time");
                mesh.holds_nothing("it is over");
            });
        }
    }
}

/// A try may be what a half-open breaker waits for. It must learn what became of it.
#[test]
fn a_hedge_that_is_cancelled_gives_the_place_of_the_probe_back() {
    run(async {
        let mut mesh = mesh(2).await;
        let endpoint = Arc::clone(&mesh.service.endpoints[1]);
        open(&endpoint.breaker, &mesh);
        mesh.pass(BreakerPolicy::default().open_for).await;
        // The first try goes to the one that has fewer calls.
        endpoint.in_flight.fetch_add(1, Relaxed);
        let (first, second, _) = hedged(&mut mesh).await;
        endpoint.in_flight.fetch_sub(1, Relaxed);
        assert_eq!((first, second), (0, 1));
        let now = mesh.worker.moment();
        assert!(endpoint.breaker.admit(now).is_err(), "the hedge is its probe");
        mesh.answer(first, b"fine").await;
        assert!(matches!(endpoint.breaker.admit(now), Ok(Permit::Probe { .. })), "another may be");
        mesh.holds_nothing("it is over");
    });
}

/// The connections of a worker end, and nothing is left of a call that has two tries on them.
#[test]
fn nothing_is_left_when_both_connections_end() {
    run(async {
        let mut mesh = mesh(2).await;
        hedged(&mut mesh).await;
        let call = Rc::downgrade(&mesh.calls[0]);
        mesh.endpoints.iter_mut().for_each(Peer::vanish);
        mesh.settle().await;
        assert_eq!(error(&mesh), Some(&b"connection-broke"[..]));
        mesh.holds_nothing("both are gone");
        assert!(call.upgrade().is_none());
    });
}
