//! Connections that are not read for a while, in virtual time.

use std::{task::Waker, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    task::{LocalSet, spawn_local, yield_now},
    time::advance,
};
use weft_wire::Name;

use super::*;
use crate::{
    thread::{account::Counted, loads::Load},
    trial::{
        self,
        peer::{connected, post},
    },
};

/// In seconds: longer than a peer may be silent, shorter than it may be paused.
const LONG: u64 = 100;

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_not_read_for_lack_of_memory_is_not_given_up() {
    LocalSet::new()
        .run_until(async {
            let (worker, _questions) = trial::worker_with_questions();
            let attending = spawn_local({
                let worker = Rc::clone(&worker);
                async move { worker.accounts.attend().await }
            });
            let load: Rc<Load> = Rc::default();
            let (mut peer, calls, serving) = connected(&worker, &load, false);
            peer.call(&post(), 1_000);
            peer.pass(1).await.expect("it is read");
            assert_eq!((calls.borrow().len(), load.bytes()), (1, 1_000));

            let others = Counted::new(&worker.accounts.inbound, &load);
            others.set(limits::MEMORY_BYTES / 2);
            peer.call(&post(), 1_000);
            peer.pass(LONG).await.expect("the sidecar still answers");
            assert!(!serving.is_finished(), "a peer that is not read is not judged by its PING answers");
            assert_eq!(calls.borrow().len(), 1, "nothing was read");
            others.set(0);
            peer.pass(1).await.expect("it is read");
            assert!(!serving.is_finished());
            assert_eq!(load.bytes(), 2_000, "it is read again");

            // A peer that is gone is noticed as soon as it is read again.
            peer.is_reading = false;
            for _ in 0..10 * LONG {
                advance(Duration::from_millis(100)).await;
                yield_now().await;
            }
            assert!(serving.is_finished(), "it has not answered");
            attending.abort();
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_connection_ends_if_nothing_is_forwarded_for_long() {
    LocalSet::new()
        .run_until(async {
            let (worker, _questions) = trial::worker_with_questions();
            let load: Rc<Load> = Rc::default();
            let (mut peer, calls, serving) = connected(&worker, &load, false);
            peer.call(&post(), 1_000);
            peer.pass(1).await.expect("it is read");
            let others = Counted::new(&worker.accounts.inbound, &load);
            others.set(limits::MEMORY_BYTES / 2);
            peer.call(&post(), 1_000);
            for _ in 0..2 * limits::PAUSED_TIME.as_secs() {
                // Its end is an end of the stream.
                let _ = peer.pass(1).await;
            }
            assert!(serving.is_finished(), "its cancelled calls would not be noticed");
            others.set(0);
            drop(calls);
            assert_eq!(load.bytes(), 0);
        })
        .await;
}

/// Many connections of one peer, each with a call whose body comes at once when the peer already holds its part.
#[tokio::test(start_paused = true)]
async fn connections_that_hold_nothing_stay_within_their_peers_part_of_the_memory() {
    const CONNECTIONS: usize = 50;
    LocalSet::new()
        .run_until(async {
            let (worker, _questions) = trial::worker_with_questions();
            let load: Rc<Load> = Rc::default();
            let others = Counted::new(&worker.accounts.inbound, &load);
            let mut peers = Vec::new();
            for _ in 0..CONNECTIONS {
                let (mut peer, calls, _serving) = connected(&worker, &load, false);
                let stream = peer.call(&post(), 0);
                peer.pass(1).await.expect("it is read");
                peers.push((peer, calls, stream));
            }
            others.set(limits::MEMORY_BYTES / 2);
            for (peer, _, stream) in &mut peers {
                peer.core.send_data(*stream, &[0; 60_000], false);
                peer.pass(1).await.expect("it is not ended");
            }
            let more = load.bytes() - others.held();
            assert!(more <= CONNECTIONS * LITTLE_BYTES, "{more} bytes");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn incomplete_header_blocks_are_charged_to_their_peer() {
    LocalSet::new()
        .run_until(async {
            let (worker, _questions) = trial::worker_with_questions();
            let load: Rc<Load> = Rc::default();
            let (mut peer, calls, serving) = connected(&worker, &load, false);
            peer.pass(1).await.expect("it is read");
            // HEADERS and CONTINUATION on stream 1, of 10,000 bytes each and without END_HEADERS, and half of a third
            // frame.
            let frame = |kind| [&[0, 0x27, 0x10, kind, 0, 0, 0, 0, 1][..], &[0x82; 10_000]].concat();
            let sent = [frame(1), frame(9), frame(9)[..5_000].to_vec()].concat();
            peer.io.write_all(&sent).await.unwrap();
            peer.pass(1).await.expect("it is read");
            assert_eq!((calls.borrow().len(), load.bytes()), (0, 25_000));

            let others = Counted::new(&worker.accounts.inbound, &load);
            others.set(limits::MEMORY_BYTES / 2);
            peer.io.write_all(&frame(9)[5_000..]).await.unwrap();
            peer.pass(1).await.expect("it is not ended yet");
            assert_eq!(load.bytes(), 25_000 + limits::MEMORY_BYTES / 2, "nothing more is read");
            // A turn sees it after the next PING: long before a pause would end by itself.
            let soon = limits::HTTP2_TIMEOUT + limits::IDLE_PING_INTERVAL + limits::KEEP_ALIVE_TIMEOUT;
            assert!(soon < limits::PAUSED_TIME);
            for _ in 0..=soon.as_secs() {
                // Its end is an end of the stream.
                let _ = peer.pass(1).await;
            }
            assert!(serving.is_finished());
            others.set(0);
            assert_eq!(load.bytes(), 0);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_slowly_is_not_given_up_and_one_that_does_not_read_is() {
    LocalSet::new()
        .run_until(async {
            let (worker, _questions) = trial::worker_with_questions();
            let (mut peer, calls, serving) = connected(&worker, &Rc::default(), false);
            let stream = peer.call(&post(), 10);
            peer.pass(1).await.expect("it is read");
            // Many answers: as much as windows allow waits to be written, and nothing more is read.
            let call = Rc::clone(&calls.borrow()[0]);
            let mut head = Headers::new();
            head.set(Name::STATUS, b"200");
            Rc::clone(&call).response_head(head, false);
            call.response_data(&vec![0; limits::SEND_BUFFER_BYTES * 2], false);
            peer.is_reading = false;
            for _ in 0..LONG / 2 {
                peer.pass(1).await.expect("no timeout ends it");
                // A few bytes a second.
                let mut some = [0; 100];
                let mut read = ReadBuf::new(&mut some);
                let mut cx = Context::from_waker(Waker::noop());
                assert!(Pin::new(&mut peer.io).poll_read(&mut cx, &mut read).is_ready());
                let now = Instant::now().into_std();
                peer.unread.extend_from_slice(read.filled());
                let unread = std::mem::take(&mut peer.unread);
                let mut input = &unread[..];
                while peer.core.receive(&mut input, now).expect("it keeps the rules").is_some() {}
                peer.unread = input.to_vec();
            }
            assert!(!serving.is_finished(), "it takes what it is sent");
            for _ in 0..10 * LONG {
                advance(Duration::from_millis(100)).await;
                yield_now().await;
            }
            assert!(serving.is_finished(), "it takes nothing any more");
            let _ = stream;
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_frees_its_buffers_while_a_call_stays_open() {
    LocalSet::new()
        .run_until(async {
            let (worker, _questions) = trial::worker_with_questions();
            let (mut peer, calls, _serving) = connected(&worker, &Rc::default(), false);
            for _ in 0..20 {
                peer.call(&post(), 10);
            }
            peer.pass(1).await.expect("it is read");
            let mut head = Headers::new();
            head.set(Name::STATUS, b"200");
            // More than the output takes: the rest waits in queues.
            for call in calls.borrow().iter() {
                call.response_head(head.clone(), false);
                call.response_data(&[0; 60_000], false);
            }
            let usage = || worker.survey().links[0];
            assert!(usage().buffer_bytes > 10 * 60_000);
            peer.pass(5).await.expect("it takes all");
            let rest = calls.borrow_mut().split_off(1);
            rest.iter().for_each(|call| call.response_data(&[], true));
            peer.pass(5).await.expect("it takes all");
            assert_eq!((usage().streams, usage().output_bytes), (1, 0));
            assert!(usage().buffer_bytes > 100 << 10, "{} bytes", usage().buffer_bytes);
            advance(Duration::from_secs(5)).await;
            worker.shrink(Instant::now());
            assert!(usage().buffer_bytes <= 4 << 10, "{} bytes", usage().buffer_bytes);
            calls.borrow()[0].response_data(&[0; 10], true);
            peer.pass(1).await.expect("it goes on");
            assert_eq!(usage().streams, 0);
        })
        .await;
}
