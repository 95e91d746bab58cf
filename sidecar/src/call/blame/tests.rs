use std::{rc::Rc, sync::Arc, time::Duration};

use tokio::{
    task::{LocalSet, spawn_local, yield_now},
    time::advance,
};
use weft_mesh::{limits, policy::BreakerPolicy};
use weft_wire::{Cause, Code, Headers, Name};

use super::*;
use crate::{
    call::record::CallRecord,
    message::{deadline::Limit, failure::Failure},
    policy::breaker::{Breaker, Permit},
    telemetry::metrics::{CallLabels, Direction},
    thread::{account::Counted, worker::Worker},
    transport::link::Link,
    trial::{
        self,
        peer::{Peer, connected, post},
    },
};

const TIMEOUT: Duration = Duration::from_secs(20);

/// A caller, its call, and the breaker of the service that it calls.
struct Play {
    worker: Rc<Worker>,
    peer: Peer,
    call: Rc<Call>,
    breaker: Arc<Breaker>,
}

/// A call with a contract's timeout. Its head and `bytes` bytes of its body were sent to a service.
async fn call(head: &Headers, bytes: usize) -> (Play, weft_wire::StreamId) {
    let worker = trial::worker();
    let (mut peer, calls, _) = connected(&worker, &Rc::clone(&worker.own), true);
    spawn_local({
        let worker = Rc::clone(&worker);
        async move { worker.deadlines.run().await }
    });
    let stream = peer.call(head, bytes);
    peer.pass(0).await.expect("it is read");
    while calls.borrow().is_empty() {
        peer.pass(1).await.expect("it is read");
    }
    let call = Rc::clone(&calls.borrow()[0]);
    let breaker = Arc::new(Breaker::new(BreakerPolicy::default()));
    let labels = CallLabels {
        direction: Direction::Outbound,
        service: "probe.shop".into(),
        method: "probe.v1.Probe/Say".into(),
        peer: "keyboard.shop".into(),
    };
    let mut record = CallRecord::begin(&worker, &worker.shared.metrics.calls(labels), call.started, None);
    record.admitted(&breaker, Permit::Call);
    call.record(record);
    call.end_by(call.started.checked_add(TIMEOUT), Limit::Contracts);
    // The service has sent no settings yet, so HTTP/2's default windows apply.
    let counted = Counted::new(&worker.accounts.outbound, &Rc::default());
    let upstream = Link::client(&worker, &worker.wire_limits.mesh_made, &Rc::default(), counted);
    call.send_over(&upstream, |_, _, _| {}).expect("there is room");
    (Play { worker, peer, call, breaker }, stream)
}

impl Play {
    async fn pass(&mut self, seconds: u64) {
        self.peer.pass(seconds).await.expect("the connection goes on");
    }

    /// How many failures the service is charged with. The call must be over.
    fn failures(&self) -> u32 {
        assert!(self.call.is_over());
        self.breaker.statistics(self.worker.moment()).failures
    }

    fn answer(&self, bytes: usize) {
        let mut head = Headers::new();
        head.set(Name::STATUS, b"200");
        self.call.response_head(head, false);
        self.call.response_data(&vec![0; bytes], false);
    }
}

fn grpc() -> Headers {
    let mut head = post();
    head.append(Name::CONTENT_TYPE, b"application/grpc");
    head
}

fn connect() -> Headers {
    let mut head = Headers::new();
    head.set(Name::METHOD, b"CONNECT");
    head.set(Name::AUTHORITY, b"probe.shop:80");
    head
}

/// Runs a test whose time is virtual.
async fn run(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

const WHOLE: u64 = TIMEOUT.as_secs() + 5;

#[tokio::test(start_paused = true)]
async fn a_request_that_is_sent_slowly_opens_no_breaker() {
    run(async {
        for seconds in [WHOLE, TIMEOUT.as_secs() - 2] {
            let (mut play, stream) = call(&grpc(), 1).await;
            for _ in 0..seconds {
                play.peer.core.send_data(stream, b"x", false);
                play.pass(1).await;
            }
            // In the second case the request is complete shortly before the deadline.
            play.peer.core.send_data(stream, b"x", true);
            play.pass(5).await;
            assert_eq!(play.failures(), 0);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_read_opens_no_breaker() {
    run(async {
        let (mut play, stream) = call(&grpc(), 1).await;
        play.peer.core.send_data(stream, b"x", true);
        play.pass(1).await;
        play.answer(4 * limits::SEND_BUFFER_BYTES);
        for _ in 0..WHOLE {
            advance(Duration::from_secs(1)).await;
            yield_now().await;
        }
        assert_eq!(play.failures(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_silent_or_takes_nothing_is_charged() {
    run(async {
        let (mut play, stream) = call(&grpc(), 1).await;
        play.peer.core.send_data(stream, b"x", true);
        play.pass(WHOLE).await;
        assert_eq!(play.failures(), 1, "it had the whole request all the time");

        let (mut play, stream) = call(&grpc(), 1).await;
        play.peer.core.send_data(stream, &vec![0; limits::STREAM_WINDOW_BYTES as usize / 2], false);
        play.pass(WHOLE).await;
        assert_eq!(play.failures(), 1, "it does not take the rest of the request");

        let (mut play, stream) = call(&grpc(), 1).await;
        play.peer.core.send_data(stream, b"x", true);
        play.pass(1).await;
        play.answer(10);
        play.pass(WHOLE).await;
        assert_eq!(play.failures(), 1, "the caller has read what there is of the answer");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_answers_deadline_exceeded_too_early_is_charged() {
    run(async {
        for (seconds, failures) in [(1, 1), (TIMEOUT.as_secs() - 1, 0)] {
            let (mut play, _) = call(&grpc(), 1).await;
            play.pass(seconds).await;
            let mut answer = Headers::new();
            answer.set(Name::STATUS, b"200");
            answer.append(Name::CONTENT_TYPE, b"application/grpc");
            answer.append(Name::GRPC_STATUS, b"4");
            // A connection's turn does the same before it handles an answer.
            play.worker.tick();
            play.call.response_head(answer, true);
            assert_eq!(play.failures(), failures, "after {seconds} s, with an incomplete request");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_gives_up_a_slow_request_is_not_charged() {
    run(async {
        let (mut play, _) = call(&post(), 1).await;
        play.pass(1).await;
        play.call.fail(&Failure::broke_within(&"it went away"));
        assert_eq!(play.failures(), 0, "before the request was complete");
        let (play, _) = call(&grpc(), 1).await;
        play.call.fail(&Failure::broke_within(&"it went away"));
        assert_eq!(play.failures(), 1, "servers of gRPC do not give up requests");
        let (mut play, stream) = call(&post(), 1).await;
        play.peer.core.send_data(stream, b"x", true);
        play.pass(1).await;
        play.call.fail(&Failure::broke_within(&"it went away"));
        assert_eq!(play.failures(), 1, "it had the whole request");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_within_a_tunnel_opens_no_breaker() {
    run(async {
        let (play, _) = call(&connect(), 1).await;
        play.answer(1);
        play.call.endpoint_reset(Code::INTERNAL_ERROR, Cause::Peer);
        assert_eq!(play.failures(), 0);
        let (play, _) = call(&grpc(), 1).await;
        play.answer(1);
        play.call.endpoint_reset(Code::INTERNAL_ERROR, Cause::Peer);
        assert_eq!(play.failures(), 1, "a service that breaks off its answer");
    })
    .await;
}
