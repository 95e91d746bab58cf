//! The memory that calls hold, and who it counts for. Other subjects have files of their own.

mod ends;
mod flow;

use tokio::task::LocalSet;

use super::*;
use crate::{
    thread::account::Counted,
    trial::{
        self,
        peer::{connected, post},
    },
};

const LONG_LIST: usize = 60_000;

fn long(mut list: Headers) -> Headers {
    list.append_bytes(b"x-long", &vec![b'a'; LONG_LIST]);
    list
}

#[tokio::test(start_paused = true)]
async fn long_header_lists_count_for_the_peer_until_its_call_ends() {
    LocalSet::new()
        .run_until(async {
            let (worker, _questions) = trial::worker_with_questions();
            let load: Rc<Load> = Rc::default();
            let (mut peer, calls, _serving) = connected(&worker, &load, false);
            peer.call(&post(), 0);
            peer.pass(1).await.expect("it is read");
            assert_eq!((calls.borrow().len(), load.bytes()), (1, 0), "a head of the usual size");

            let stream = peer.call(&long(post()), 0);
            peer.pass(1).await.expect("it is read");
            assert!(calls.borrow().len() == 2 && load.bytes() >= LONG_LIST, "{} bytes", load.bytes());
            let one = load.bytes();
            peer.core.send_trailers(stream, &long(Headers::new()));
            peer.pass(1).await.expect("it is read");
            assert!(load.bytes() >= one + LONG_LIST, "{} bytes with the trailers", load.bytes());
            assert_eq!(worker.accounts.inbound.held(), load.bytes());

            calls.borrow()[1].reset(Code::CANCEL);
            assert_eq!((worker.accounts.inbound.held(), load.bytes()), (0, 0), "its call is over");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_whose_heads_hold_its_part_of_the_memory_gets_no_more_calls() {
    LocalSet::new()
        .run_until(async {
            let (worker, _questions) = trial::worker_with_questions();
            let (load, other): (Rc<Load>, Rc<Load>) = Default::default();
            let rest = Counted::new(&worker.accounts.inbound, &load);
            rest.set(limits::MEMORY_BYTES / 4 - 4 * LONG_LIST);
            let (mut peer, calls, _serving) = connected(&worker, &load, false);
            for _ in 0..30 {
                // What it sends beyond its part is not read.
                if !peer.core.is_congested() {
                    peer.call(&long(post()), 0);
                }
                // The connection ends when the rest of a header list does not arrive in time.
                if peer.pass(1).await.is_err() {
                    break;
                }
            }
            // Workers report memory in steps, so a few more than four calls get through.
            let taken = calls.borrow().len();
            assert!((4..20).contains(&taken), "{taken} calls");
            assert!(worker.inbound_slot(&other).is_some(), "another peer's call");
            calls.borrow().iter().for_each(|call| call.reset(Code::CANCEL));
            calls.borrow_mut().clear();
            drop(rest);
            assert_eq!(worker.accounts.inbound.held(), load.bytes());
            assert!(load.bytes() < LONG_LIST, "except for a list that was read in part");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn long_heads_of_the_local_service_count_for_it() {
    LocalSet::new()
        .run_until(async {
            let (worker, _questions) = trial::worker_with_questions();
            let (mut client, calls, _serving) = connected(&worker, &Rc::clone(&worker.local_load), true);
            client.call(&long(post()), 0);
            client.pass(1).await.expect("it is read");
            assert!(worker.accounts.outbound.held() >= LONG_LIST && worker.local_load.bytes() >= LONG_LIST);
            calls.borrow()[0].reset(Code::CANCEL);
            assert_eq!((worker.accounts.outbound.held(), worker.local_load.bytes()), (0, 0));
        })
        .await;
}

/// An upload that the service does not take counts for its caller, whoever else calls.
#[tokio::test(start_paused = true)]
async fn an_upload_that_waits_is_broken_off_when_its_caller_holds_too_much() {
    LocalSet::new()
        .run_until(async {
            let (worker, _questions) = trial::worker_with_questions();
            let load: Rc<Load> = Rc::default();
            let rest = Counted::new(&worker.accounts.inbound, &load);
            let (mut peer, calls, _serving) = connected(&worker, &load, false);
            let stream = peer.call(&post(), 10);
            peer.pass(1).await.expect("it is read");
            let call = Rc::clone(&calls.borrow()[0]);
            rest.set(limits::MEMORY_BYTES / 4 + limits::MEMORY_BYTES / 32);
            call.request_data(&[0; 10], false);
            assert!(!call.is_over(), "it is over its part, but not by much");
            rest.set(limits::MEMORY_BYTES / 2);
            call.request_data(&[0; 10], false);
            assert!(call.is_over());
            drop((rest, stream));
        })
        .await;
}
