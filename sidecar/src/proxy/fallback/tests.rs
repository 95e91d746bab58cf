use std::{rc::Rc, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::task::LocalSet;
use weft_contracts::weft::discovery::v1::Health;
use weft_mesh::{limits, names::ServiceName, policy::Fallback as Policy};
use weft_wire::{Headers, Name};

use super::*;
use crate::{
    call::Call,
    endpoints::catalog::Service,
    message::{deadline::Limit, failure::ERROR_HEADER},
    policy::{
        breaker::{Permit, Verdict},
        retry::Miss,
    },
    proxy::outbound::{Downstream, carry},
    thread::account::Counted,
    time::moment::Moment,
    transport::link::Link,
    trial::{
        self,
        mesh::grpc,
        peer::{self, Peer, post},
        service::{PATH, publish, service},
    },
};

/// A client of a sidecar, and a call of it that is still to be carried.
struct Play {
    worker: Rc<Worker>,
    client: Peer,
    call: Rc<Call>,
}

fn answer() -> Option<Policy> {
    Some(Policy::Answer { message: b"\x08\x07".to_vec().into(), json: r#"{"a":7}"#.into() })
}

fn elsewhere(name: &str) -> Option<Policy> {
    Some(Policy::Elsewhere { service: Some(name.into()), method: None })
}

fn probe() -> ServiceName {
    ServiceName::parse("probe.shop").unwrap()
}

/// A call of `probe.shop` in a mesh of these services, of which none is up.
async fn call(head: &Headers, services: impl FnOnce(&Worker) -> Vec<Service>) -> Play {
    let worker = trial::worker_with_flags(&["--namespace", "shop"]);
    let services = services(&worker);
    let endpoints = services.iter().flat_map(|service| &service.endpoints);
    endpoints.for_each(|endpoint| endpoint.set_health(Health::Down, false));
    publish(&worker, services);
    let (mut client, calls, _serving) = peer::connected(&worker, &worker.local_load, true);
    client.call(head, 10);
    client.pass(1).await.expect("the connection lives");
    let call = Rc::clone(&calls.borrow()[0]);
    Play { worker, client, call }
}

impl Play {
    /// Carries the call, and waits until it is over.
    async fn carry(&mut self) {
        carry(Downstream::new(&Proxy::new(Rc::clone(&self.worker))), Rc::clone(&self.call)).await;
        while !self.call.is_over() {
            self.client.pass(1).await.expect("the connection lives");
        }
        self.client.pass(1).await.expect("the connection lives");
    }

    /// A header of the answer's head.
    fn header(&self, name: Name) -> Option<String> {
        let head = self.client.heads.first().expect("an answer");
        head.get(name).map(|value| String::from_utf8(value.to_vec()).unwrap())
    }

    fn fallbacks(&self) -> u64 {
        let known = self.worker.shared.catalog.known(&Asked::Service(probe()));
        known.expect("it was published").method(PATH).metrics.fallbacks.load(Relaxed)
    }
}

fn open(service: Service) -> Service {
    let now = Moment::now();
    for _ in 0..5 {
        service.breaker.settle(Permit::Call, Verdict::Failure, now);
    }
    assert!(service.breaker.is_open(now));
    service
}

async fn run(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

const WHOLE_ANSWER: &[u8] = b"\0\0\0\0\x02\x08\x07";

#[tokio::test(start_paused = true)]
async fn a_fixed_answer_takes_the_place_of_an_open_breaker() {
    run(async {
        let mut play = call(&grpc(), |worker| vec![open(service(worker, "probe", answer()))]).await;
        play.carry().await;
        assert_eq!(play.header(FALLBACK_HEADER).as_deref(), Some("breaker-open; to=answer"));
        assert_eq!((play.header(ERROR_HEADER), &*play.client.body), (None, WHOLE_ANSWER));
        let trailers = &play.client.heads[1];
        assert_eq!(trailers.get(Name::GRPC_STATUS), Some(&b"0"[..]));
        assert_eq!(play.fallbacks(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_call_goes_from_one_fallback_to_the_next() {
    run(async {
        let mut play = call(&grpc(), |worker| {
            vec![service(worker, "probe", elsewhere("other")), open(service(worker, "other", answer()))]
        })
        .await;
        play.carry().await;
        assert_eq!(play.header(FALLBACK_HEADER).as_deref(), Some("breaker-open; to=answer"), "of the second");
        assert_eq!((&*play.client.body, play.fallbacks()), (WHOLE_ANSWER, 2), "the call is one of the first");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_fallback_fails_is_told_both_reasons() {
    run(async {
        let mut play = call(&grpc(), |worker| {
            vec![service(worker, "probe", elsewhere("other")), open(service(worker, "other", None))]
        })
        .await;
        play.carry().await;
        assert_eq!(play.header(ERROR_HEADER).as_deref(), Some("no-endpoint"), "of the service that was called");
        let message = play.header(Name::other("grpc-message")).unwrap();
        assert!(message.starts_with("probe.shop%20is%20known"), "{message}");
        assert!(
            message.contains("its%20fallback%20failed%20as%20well:%20other.shop%20fails%20too%20often"),
            "{message}"
        );
        assert_eq!(play.header(FALLBACK_HEADER), None);
    })
    .await;
}

/// A service could have its callers call any other, with their own rights.
#[tokio::test(start_paused = true)]
async fn a_call_goes_only_to_a_service_that_stands_in_for_the_first() {
    run(async {
        let mut play = call(&grpc(), |worker| {
            let other = Service { policy: Default::default(), ..service(worker, "other", answer()) };
            vec![service(worker, "probe", elsewhere("other")), open(other)]
        })
        .await;
        play.carry().await;
        assert_eq!(play.header(ERROR_HEADER).as_deref(), Some("no-endpoint"));
        let message = play.header(Name::other("grpc-message")).unwrap();
        assert!(message.contains("other.shop%20does%20not%20answer%20for%20probe.shop"), "{message}");
    })
    .await;
}

/// The owner of one service could open the breaker of another at its callers.
#[tokio::test(start_paused = true)]
async fn a_deadline_of_the_first_service_says_nothing_about_its_fallback() {
    run(async {
        for own in [None, Some(Duration::from_secs(1)), Some(Duration::from_secs(60))] {
            let mut play = call(&grpc(), |worker| {
                vec![service(worker, "probe", elsewhere("other")), service(worker, "other", None)]
            })
            .await;
            let deadlines = Rc::clone(&play.worker);
            tokio::task::spawn_local(async move { deadlines.deadlines.run().await });
            let of_first = play.worker.moment().checked_add(Duration::from_secs(10));
            play.call.end_by(of_first, Limit::Contracts);
            let is_own = own == Some(Duration::from_secs(1));
            play.call.continue_until(own.and_then(|own| play.worker.moment().checked_add(own)));
            assert_eq!(play.call.limit(), if is_own { Limit::Contracts } else { Limit::Callers }, "{own:?}");
            play.client.pass(if is_own { 2 } else { 11 }).await.expect("the connection lives");
            assert!(play.call.is_over(), "{own:?}: the sooner of the two holds");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn fallbacks_that_lead_to_one_another_end() {
    run(async {
        let mut play = call(&grpc(), |worker| {
            vec![service(worker, "probe", elsewhere("other")), service(worker, "other", elsewhere("probe"))]
        })
        .await;
        play.carry().await;
        assert_eq!(play.header(ERROR_HEADER).as_deref(), Some("no-endpoint"));
        assert_eq!(play.fallbacks(), u64::from(limits::FALLBACKS));
        assert_eq!(play.worker.shared.metrics.times_reached("FALLBACKS"), 1);

        let mut play = call(&grpc(), |worker| vec![service(worker, "probe", elsewhere("probe"))]).await;
        play.carry().await;
        assert_eq!(play.header(ERROR_HEADER).as_deref(), Some("no-endpoint"), "it leads to itself");
        assert_eq!(play.fallbacks(), 1, "it is not taken again");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_call_of_no_rpc_protocol_gets_no_fixed_answer() {
    run(async {
        let mut play = call(&post(), |worker| vec![service(worker, "probe", answer())]).await;
        play.carry().await;
        assert_eq!(play.client.heads[0].status(), Some(503));
        assert_eq!((play.header(ERROR_HEADER).as_deref(), play.fallbacks()), (Some("no-endpoint"), 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_sent_and_not_kept_goes_to_no_other_service() {
    run(async {
        for (policy, expected) in [(elsewhere("other"), None), (answer(), Some("connect-failed; to=answer"))] {
            let mut play =
                call(&grpc(), |worker| vec![service(worker, "probe", policy), service(worker, "other", answer())])
                    .await;
            let probe = play.worker.shared.catalog.known(&Asked::Service(probe())).unwrap();
            play.call.tries.set_route(Route::new(probe, PATH));
            let counted = Counted::new(&play.worker.accounts.outbound, &Rc::default());
            let upstream = Link::client(&play.worker, &play.worker.wire_limits.mesh_made, &Rc::default(), counted);
            play.call.send_over(&upstream, |_, _, _| {}).expect("there is room");
            play.call.request_data(&vec![0; limits::REPLAY_BYTES_PER_CALL + 1], false);
            assert!(!play.call.is_repeatable());
            play.call.missed(Miss::Unseen("it is going away"));
            play.client.pass(1).await.expect("the connection lives");
            assert_eq!(play.header(FALLBACK_HEADER).as_deref(), expected);
            assert_eq!(play.header(ERROR_HEADER).is_none(), expected.is_some());
        }
    })
    .await;
}
