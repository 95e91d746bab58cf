//! The tries of one call: an endpoint is picked, the call is sent there, and where it provably was not seen, or where
//! its contract says that twice is as once, it is sent again elsewhere.

use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use weft_mesh::{errors::Reason, limits};
use weft_wire::{CannotOpen, Code};

use crate::{
    answer::Failure,
    balance::NoChoice,
    breaker::Permit,
    call::{Call, Way},
    catalog::{Method, Service},
    classify::Outcome,
    deadline,
    moment::Moment,
    peers::Load,
    pool::ConnectError,
    record::AttemptRecord,
    worker::Worker,
};

/// Where a call goes, as far as it is the same for each of its kind.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) service: Arc<Service>,
    pub(crate) method: Arc<Method>,
}

/// How often endpoints are tried that then turn out not to be reached: nothing was sent, so it costs only time.
const CONNECTS: usize = 4;

/// What was tried for a call.
#[derive(Default)]
pub(crate) struct Tries {
    /// Not there until the call has a target.
    route: OnceCell<Rc<Route>>,
    /// Numbers of the endpoints.
    tried: Cell<[u64; CONNECTS]>,
    count: Cell<usize>,
    /// Tries that may not be had again.
    sent: Cell<u32>,
    last: RefCell<Option<Box<Failure>>>,
}

/// Why a try came to nothing.
pub(crate) enum Miss {
    /// No connection, or none with room: nothing was sent.
    NotSent(ConnectError),
    /// It was sent, but provably not looked at.
    Unseen(&'static str),
    /// The endpoint takes no more calls at present: it was not looked at.
    Full(&'static str),
    /// It was sent, and nobody knows whether it was looked at.
    Broke(String),
    /// The service ended the call with a code instead of an answer.
    Reset(Code),
    /// The header list of its answer was over the limit.
    TooLarge,
    /// It can't be sent in the form that the service speaks.
    Malformed(String),
}

/// What becomes of a call after a try.
pub(crate) enum Verdict {
    Again,
    Fail(Failure),
    Reset(Code),
}

impl Tries {
    /// Says where the call goes.
    pub(crate) fn set_route(&self, route: Rc<Route>) {
        // A call is routed once.
        let _ = self.route.set(route);
    }

    fn route(&self) -> &Route {
        self.route.get().expect("`run` is called once there is a route, and nothing else leads to an endpoint")
    }

    /// What the caller is told when time is up.
    pub(crate) fn deadline_passed(&self) -> Failure {
        let failure = Failure::deadline_passed();
        match self.route.get() {
            Some(route) => failure.of_service(route.service.name.as_str()),
            None => failure,
        }
    }

    /// What the caller is told of a service that does not take what it is sent, or whose answers nobody reads.
    #[cold]
    pub(crate) fn holds_its_part(&self, worker: &Worker) -> Failure {
        let (name, memory) = (&self.route().service.name, worker.shared.budget.bytes());
        let message = format!("calls of {name} hold its part of this sidecar's memory (--memory {memory}); slow down");
        Failure::new(Reason::Overloaded, message).of_service(name.as_str())
    }

    /// What the caller is told of a service that has as many calls as it may have.
    #[cold]
    fn has_its_calls(&self, callee: &Load) -> Failure {
        let (name, calls) = (&self.route().service.name, callee.calls());
        let message =
            format!("{calls} calls to {name} run in this sidecar, as many as one service may have now; slow down");
        Failure::new(Reason::Overloaded, message).of_service(name.as_str())
    }

    /// Writes down how a try failed, and says how the call goes on.
    pub(crate) fn missed(&self, call: &Call, miss: Miss) -> Verdict {
        let Some(route) = self.route.get() else { return unrouted(miss) };
        let failure = match self.failure_of(route, call, miss) {
            Ok(failure) => failure.of_service(route.service.name.as_str()),
            Err(code) => return Verdict::Reset(code),
        };
        let counters = &call.worker.shared.metrics.counters;
        if self.sent.get() >= limits::TRIES {
            counters.not_retried_unsafe.fetch_add(1, Relaxed);
            return Verdict::Fail(failure);
        }
        if self.count.get() >= CONNECTS {
            return Verdict::Fail(failure);
        }
        if !call.is_repeatable() {
            counters.not_retried_body.fetch_add(1, Relaxed);
            return Verdict::Fail(failure);
        }
        call.with_record(|record| record.retried(&failure.message));
        *self.last.borrow_mut() = Some(Box::new(failure));
        Verdict::Again
    }

    /// What the caller is told if this was the last try; an error is the service's own code for it.
    fn failure_of(&self, Route { service, method }: &Route, call: &Call, miss: Miss) -> Result<Failure, Code> {
        let (name, now) = (&service.name, call.worker.moment());
        let sent = self.sent.get();
        let shun = || call.with_attempt(|attempt| attempt.endpoint.shun(now));
        let ended = |outcome| call.with_attempt(|attempt| attempt.ended(outcome));
        let not_taken = |why| call.with_attempt(|attempt| attempt.not_taken(why));
        Ok(match miss {
            Miss::Reset(code) => {
                ended(Outcome::Reset(code));
                return Err(code);
            }
            Miss::TooLarge => {
                self.sent.set(limits::TRIES);
                ended(Outcome::Failed(Reason::AnswerHeadersTooLarge));
                call.answer_too_large()
            }
            Miss::Malformed(why) => {
                self.sent.set(limits::TRIES);
                Failure::new(Reason::Malformed, why)
            }
            Miss::NotSent(ConnectError::Full) => {
                not_taken(Reason::Overloaded.as_str());
                Failure::new(Reason::Overloaded, format!("{name}: {}", ConnectError::Full))
            }
            Miss::NotSent(why) => {
                shun();
                ended(Outcome::Failed(Reason::ConnectFailed));
                Failure::new(Reason::ConnectFailed, format!("{name} could not be reached: {why}"))
            }
            Miss::Unseen(why) => {
                shun();
                self.sent.set(sent + 1);
                not_taken("refused");
                Failure::new(Reason::ConnectFailed, format!("{name} did not take the call: {why}"))
            }
            Miss::Full(why) => {
                shun();
                self.sent.set(sent + 1);
                not_taken(Reason::ServiceFull.as_str());
                Failure::new(Reason::ServiceFull, format!("{name}: {why}"))
            }
            Miss::Broke(why) => {
                self.sent.set(if method.idempotency.is_safe_to_repeat() { sent + 1 } else { limits::TRIES });
                ended(Outcome::Failed(Reason::ConnectionBroke));
                let message = format!("the connection to {name} broke before it answered: {why}");
                Failure::new(Reason::ConnectionBroke, message)
            }
        })
    }

    fn no_choice(&self, why: NoChoice, now: Moment) -> Failure {
        // What went wrong before says more than that nothing is left to try.
        if let Some(last) = self.last.borrow_mut().take() {
            return *last;
        }
        let service = &self.route().service;
        let name = &service.name;
        let failure = match why {
            NoChoice::NoneUp if service.is_starting(now) => {
                let message = format!("{name} is starting: none of its endpoints was up yet");
                Failure { is_expected: true, ..Failure::new(Reason::NoEndpoint, message) }
            }
            NoChoice::NoneUp => {
                Failure::new(Reason::NoEndpoint, format!("{name} is known, but none of its endpoints is up"))
            }
            // Each try leaves a failure behind, which was told above.
            NoChoice::AllTried => Failure::new(Reason::ConnectFailed, format!("each endpoint of {name} was tried")),
        };
        failure.of_service(name.as_str())
    }

    /// How many endpoints were picked.
    pub(crate) fn count(&self) -> usize {
        self.count.get()
    }

    fn tried(&self) -> ([u64; CONNECTS], usize) {
        (self.tried.get(), self.count.get())
    }

    fn note(&self, endpoint: u64) {
        let (mut tried, count) = self.tried();
        // More than these are never tried: `missed` sees to it, and a breaker that closes in between is no try.
        if let Some(place) = tried.get_mut(count) {
            *place = endpoint;
            self.tried.set(tried);
            self.count.set(count + 1);
        }
    }
}

/// How a call ends that has no route: the sidecar answers it itself, and there is nobody else to ask.
#[cold]
fn unrouted(miss: Miss) -> Verdict {
    let (reason, why) = match miss {
        Miss::Reset(code) => return Verdict::Reset(code),
        Miss::Malformed(why) => (Reason::Malformed, why),
        Miss::TooLarge => (Reason::AnswerHeadersTooLarge, "its header list is too long".to_owned()),
        Miss::Broke(why) => (Reason::ConnectionBroke, why),
        Miss::Unseen(why) | Miss::Full(why) => (Reason::ConnectionBroke, why.to_owned()),
        Miss::NotSent(why) => (Reason::ConnectionBroke, why.to_string()),
    };
    Verdict::Fail(Failure::new(reason, format!("the sidecar could not answer the call: {why}")))
}

/// Sends a call to an endpoint that takes it.
pub(crate) async fn run(call: &Rc<Call>) -> Result<(), Verdict> {
    let Way::Outbound(tries) = &call.way else { return Ok(()) };
    let worker = &call.worker;
    let route = tries.route();
    loop {
        let now = worker.moment();
        let (tried, count) = tries.tried();
        let pick = worker.balancer.pick(&route.service.endpoints, &tried[..count], now);
        let endpoint = pick.map_err(|why| Verdict::Fail(tries.no_choice(why, call.worker.moment())))?;
        tries.note(endpoint.number);
        // Picked all the same: each of them is shut, or another call has just become this one's probe.
        let permit = endpoint.breaker.admit(now).unwrap_or(Permit::Call);
        let span = call.with_record(|record| record.span_of_attempt(count as u32 + 1, endpoint)).flatten();
        call.attempt(AttemptRecord::begin(worker, endpoint, permit, call.limit(), span));

        let pool = worker.pools.of(endpoint);
        if pool.holds_its_part(worker) {
            return Err(Verdict::Fail(tries.holds_its_part(worker)));
        }
        let callee = pool.load(worker);
        if !call.goes_to(callee) {
            return Err(Verdict::Fail(tries.has_its_calls(callee)));
        }
        let link = match pool.ready(&worker.own) {
            Some(link) => Ok(link),
            None => {
                call.waits_for(callee);
                pool.link(&worker.own).await
            }
        };
        let now = worker.moment();
        let miss = match link.map(|link| call.send_over(&link, |head, attempt, end| adapt(head, attempt, end, now))) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(CannotOpen::Full | CannotOpen::Congested)) => Miss::NotSent(ConnectError::Full),
            Ok(Err(CannotOpen::Going)) => Miss::NotSent(ConnectError::Failed("its connection is going away".into())),
            Err(why) => Miss::NotSent(why),
        };
        match tries.missed(call, miss) {
            Verdict::Again => {}
            verdict => return Err(verdict),
        }
    }
}

/// What is said anew in each try: the time that is left, and whose child it is.
fn adapt(head: &mut weft_wire::Headers, attempt: Option<&AttemptRecord>, deadline: Option<Moment>, now: Moment) {
    deadline::pass_on(head, deadline, now);
    if let Some(span) = attempt.and_then(|attempt| attempt.span.as_ref()) {
        span.pass_on(head);
    }
}

/// Another try, as a task of its own.
pub(crate) async fn again(call: Rc<Call>) {
    if let Err(verdict) = run(&call).await {
        call.apply(verdict);
    }
}

#[cfg(test)]
mod tests {
    use tokio::{task::LocalSet, time::Instant};
    use weft_contracts::weft::discovery::v1::{Health, Protocol, Version};
    use weft_mesh::policy::{BreakerPolicy, Idempotency};

    use super::*;
    use crate::{
        breaker::Breaker,
        catalog::Endpoint,
        metrics::{CallLabels, Direction},
        trial::{self, peer},
    };

    /// A route to a service with one endpoint.
    fn route(worker: &Worker, name: &str) -> Rc<Route> {
        let breaker = || Breaker::new(BreakerPolicy::default());
        let id = format!("spiffe://weft.local/ns/shop/sa/{name}").parse().unwrap();
        let endpoint = Endpoint::new("1".into(), "127.0.0.1:1".parse().unwrap(), id, Health::Up, breaker());
        let metrics = worker.shared.metrics.calls(CallLabels {
            direction: Direction::Outbound,
            service: name.into(),
            method: "_other".into(),
            peer: "shop/test".into(),
        });
        let method =
            Arc::new(Method { name: "_other".into(), timeout: None, idempotency: Idempotency::Unknown, metrics });
        let service = Service {
            name: weft_mesh::names::ServiceName::parse(&format!("{name}.shop")).unwrap(),
            protocol: Protocol::Http2,
            version: Version::default(),
            policy: Arc::default(),
            endpoints: vec![Arc::new(endpoint)],
            addresses: Vec::new(),
            breaker: Arc::new(breaker()),
            methods: Arc::default(),
            other: Arc::clone(&method),
            last_used: Arc::default(),
            heard: Instant::now(),
            is_complete: true,
            starts_since: None,
        };
        Rc::new(Route { service: Arc::new(service), method })
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_never_answers_gets_no_more_calls_and_others_do() {
        LocalSet::new()
            .run_until(async {
                let worker = trial::worker();
                let [silent, other] = ["silent", "other"].map(|name| route(&worker, name));
                let callee = worker.callees.of(&silent.service.endpoints[0].spiffe_id);
                let stuck: Vec<_> = std::iter::from_fn(|| {
                    let mut slot = worker.call_slot().expect("there is room");
                    slot.goes_to(&callee).then_some(slot)
                })
                .collect();
                let (mut client, calls, _serving) = peer::connected(&worker, &worker.own, true);
                client.pass(1).await.expect("the connection lives");
                for _ in 0..2 {
                    client.call(&peer::post(), 10);
                }
                client.pass(1).await.expect("the connection lives");
                let begun = calls.take();
                let failed = async |call: usize, route: &Rc<Route>| {
                    let Way::Outbound(tries) = &begun[call].way else { panic!("it is an outbound call") };
                    tries.set_route(Rc::clone(route));
                    match run(&begun[call]).await {
                        Err(Verdict::Fail(failure)) => failure,
                        _ => panic!("nobody is there who would take it"),
                    }
                };
                let refused = failed(0, &silent).await;
                assert_eq!((refused.reason, refused.service.as_deref()), (Reason::Overloaded, Some("silent.shop")));
                assert!(refused.message.starts_with("10000 calls to silent.shop run"), "{}", refused.message);
                assert_eq!(failed(1, &other).await.reason, Reason::ConnectFailed, "it gets as far as to its endpoint");
                drop((stuck, begun));
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_a_connection_counts_for_the_callee() {
        LocalSet::new()
            .run_until(async {
                let worker = trial::worker();
                let (mut client, calls, _serving) = peer::connected(&worker, &worker.own, true);
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
}
