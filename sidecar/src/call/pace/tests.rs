use std::time::Duration;

use weft_mesh::{
    limits,
    policy::{BreakerPolicy, SlowCall},
};
use weft_wire::{Code, Headers, StreamId};

use crate::{
    call::play::{self, Play, TIMEOUT, run},
    message::deadline::Limit,
    trial::mesh::grpc,
};

/// Calls that take longer than 1 s are slow. One call opens no breaker.
fn policy() -> BreakerPolicy {
    let slow_call = Some(SlowCall { longer_than: Duration::from_secs(1), ratio: 0.5 });
    BreakerPolicy { slow_call, ..BreakerPolicy::default() }
}

async fn call(head: &Headers, limit: Limit) -> (Play, StreamId) {
    play::call(head, 1, policy(), limit).await
}

/// How many calls the breakers of the service and of the endpoint have counted as slow. The call must be over.
fn slow(play: &Play) -> (u32, u32) {
    (play.statistics().slow, play.endpoint.breaker.statistics(play.worker.moment()).slow)
}

fn end(play: &Play) {
    play.worker.tick();
    play.call.response_data(&[], true);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_answers_late_is_slow() {
    run(async {
        let (mut play, stream) = call(&grpc(), Limit::Contracts).await;
        play.peer.core.send_data(stream, b"x", true);
        play.pass(2).await;
        play.answer(1);
        end(&play);
        assert_eq!((slow(&play), play.failures()), ((1, 1), 0));

        let (mut play, stream) = call(&grpc(), Limit::Contracts).await;
        play.peer.core.send_data(stream, &vec![0; limits::STREAM_WINDOW_BYTES as usize / 2], false);
        play.pass(2).await;
        play.answer(1);
        end(&play);
        assert_eq!(slow(&play), (1, 1), "it does not take the request");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn no_caller_and_no_long_stream_makes_a_service_slow() {
    run(async {
        let (mut play, stream) = call(&grpc(), Limit::Contracts).await;
        for _ in 0..5 {
            play.peer.core.send_data(stream, b"x", false);
            play.pass(1).await;
        }
        play.peer.core.send_data(stream, b"x", true);
        play.pass(0).await;
        play.answer(1);
        end(&play);
        assert_eq!((slow(&play), play.statistics().calls), ((0, 0), 1), "the request was sent slowly");

        for is_whole in [true, false] {
            let (mut play, stream) = call(&grpc(), Limit::Contracts).await;
            play.peer.core.send_data(stream, b"x", is_whole);
            play.pass(0).await;
            play.answer(1);
            play.pass(5).await;
            if !is_whole {
                play.peer.core.send_data(stream, b"", true);
            }
            play.pass(5).await;
            end(&play);
            assert_eq!(slow(&play), (0, 0), "the answer began at once");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_contracts_timeout_says_that_the_service_was_slow_and_the_callers_own_end_says_nothing() {
    run(async {
        for (limit, count) in [(Limit::Contracts, 1), (Limit::Callers, 0)] {
            let (mut play, stream) = call(&grpc(), limit).await;
            play.peer.core.send_data(stream, b"x", true);
            play.pass(TIMEOUT.as_secs() + 1).await;
            let statistics = play.statistics();
            let counted = (statistics.calls, statistics.failures, slow(&play));
            assert_eq!(counted, (count, count, (count, count)), "{limit:?}");
        }
        let (mut play, stream) = call(&grpc(), Limit::Contracts).await;
        play.peer.core.send_data(stream, b"x", true);
        play.pass(5).await;
        play.call.caller_gone(Code::CANCEL);
        assert_eq!((play.statistics().calls, slow(&play)), (0, (0, 0)));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_try_that_is_answered_is_judged_by_its_own_time() {
    run(async {
        let (mut play, stream) = call(&grpc(), Limit::Contracts).await;
        play.peer.core.send_data(stream, b"x", true);
        play.pass(2).await;
        let second = play::endpoint(policy());
        play.try_at(&second, Limit::Contracts);
        play.answer(1);
        end(&play);
        assert_eq!(play.statistics().slow, 0, "what was before that try is not the service's time");
        assert_eq!(second.breaker.statistics(play.worker.moment()).slow, 0);
    })
    .await;
}
