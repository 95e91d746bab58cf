use std::time::Duration;

use tokio::{task::yield_now, time::advance};
use weft_mesh::{limits, policy::BreakerPolicy};
use weft_wire::{Cause, Code, Headers, Name, StreamId};

use crate::{
    call::play::{self, Play, TIMEOUT, run},
    message::{deadline::Limit, failure::Failure},
    trial::{mesh::grpc, peer::post},
};

/// A call whose contract has a timeout. Its head and `bytes` bytes of its body were sent to a service.
async fn call(head: &Headers, bytes: usize) -> (Play, StreamId) {
    play::call(head, bytes, BreakerPolicy::default(), Limit::Contracts).await
}

fn connect() -> Headers {
    let mut head = Headers::new();
    head.set(Name::METHOD, b"CONNECT");
    head.set(Name::AUTHORITY, b"probe.shop:80");
    head
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
        assert_eq!(play.failures_of_endpoint(), 0, "before the request was complete");
        let (play, _) = call(&grpc(), 1).await;
        play.call.fail(&Failure::broke_within(&"it went away"));
        assert_eq!(play.failures_of_endpoint(), 1, "servers of gRPC do not give up requests");
        let (mut play, stream) = call(&post(), 1).await;
        play.peer.core.send_data(stream, b"x", true);
        play.pass(1).await;
        play.call.fail(&Failure::broke_within(&"it went away"));
        assert_eq!(play.failures_of_endpoint(), 1, "it had the whole request");
        assert_eq!(play.failures(), 0, "other endpoints of the service may be well");
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
