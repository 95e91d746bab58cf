//! A call between two sides, the caller's and the endpoint's. What arrives on one side is sent on the other at once.
//! Bytes that the other side can't take yet use up the sender's flow-control window, and so hold the sender back.
//!
//! [`crate::proxy::outbound`] or [`crate::proxy::inbound`] starts a call and decides where it goes. From then on the
//! events of its two connections drive it, and no task waits for it. What the caller gets is in [`answer`]. A call ends in
//! one place, [`CallState::close`]. It may have two tries at once: see [`hedge`].

mod answer;
mod blame;
mod exchange;
mod hedge;
mod look;
mod misses;
mod pace;
mod pause;
pub(crate) mod record;
mod request;
mod rival;
mod shed;
mod side;
mod state;
mod tries;
mod waiting;
mod way;

pub(crate) use self::{
    side::Side,
    tries::{CONNECTS, Tries},
    way::Way,
};

use std::{
    cell::{Cell, Ref, RefCell, RefMut},
    rc::Rc,
};

use tokio::task::AbortHandle;
use weft_mesh::limits;
use weft_wire::{CannotOpen, Code, Headers, http1};

use crate::{
    call::record::{AttemptRecord, CallRecord},
    message::{
        deadline::{self, Limit},
        failure::{Failure, Hop},
        headers::{CLIENT_CERT, cleaned},
        rpc::Rpc,
        tunnel, websocket,
    },
    thread::{loads::Load, slots::CallSlot, worker::Worker},
    time::{
        moment::Moment,
        timer::{Place, Timed},
    },
    transport::{link::Link, pipe::Pipe, socket::Socket},
};
use request::Request;
use state::{Answer, CallState, Tunnel};
use waiting::Waiting;
use way::Running;

/// See the module.
pub(crate) struct Call {
    pub(crate) worker: Rc<Worker>,
    way: Rc<dyn Way>,
    hop: Hop,
    /// What was tried for it.
    pub(crate) tries: Tries,
    /// Set for inbound calls.
    _running: Option<Running>,
    pub(crate) started: Moment,
    /// What the caller speaks.
    rpc: Rpc,
    /// See [`Self::wants_tunnel`].
    wants_tunnel: bool,
    caller: Side,
    deadline: Cell<Option<Moment>>,
    /// Whose time limit the deadline is.
    limit: Cell<Limit>,
    place: Cell<Option<Place>>,
    state: RefCell<CallState>,
}

impl Call {
    /// Takes a call in. `is_whole` says that nothing follows the head.
    pub(crate) fn begin(
        worker: &Rc<Worker>,
        way: Rc<dyn Way>,
        caller: Side,
        head: Headers,
        is_whole: bool,
        slot: CallSlot,
    ) -> Rc<Self> {
        let hop = way.hop();
        let (rpc, wants_tunnel) = (Rpc::of(&head), head.method() == Some(tunnel::CONNECT));
        let mut lists = None;
        if head.list_bytes() > limits::UNCOUNTED_LIST_BYTES {
            state::count_list(&mut lists, &slot, head.list_bytes());
        }
        let request = Request::new(head, is_whole, worker.moment());
        let call = Rc::new(Self {
            worker: Rc::clone(worker),
            hop,
            way,
            tries: Tries::default(),
            _running: matches!(hop, Hop::Inbound).then(|| Running::new(&worker.shared)),
            started: worker.moment(),
            rpc,
            wants_tunnel,
            caller,
            deadline: Cell::new(None),
            limit: Cell::default(),
            place: Cell::new(None),
            state: RefCell::new(CallState {
                endpoint: None,
                unreleased: None,
                charge: None,
                request,
                answer: Answer::Awaited,
                response_bytes: 0,
                body_status: None,
                interim_answers: 0,
                record: None,
                attempt: None,
                waiting: None,
                slot: Some(slot),
                lists,
            }),
        });
        match &call.caller {
            Side::Stream(link, stream) => link.attach(*stream, Rc::clone(&call) as _),
            Side::Socket(socket) => socket.attach(Rc::clone(&call) as _),
            Side::Pipe(_) => {}
        }
        call
    }

    /// Sets the task in which the call's steps wait. It is aborted when the call ends.
    pub(crate) fn waits_in(&self, task: Option<AbortHandle>) {
        if let Some(task) = task {
            self.state.borrow_mut().waiting = Some(Waiting::Task(task));
        }
    }

    /// What its caller speaks.
    pub(crate) fn rpc(&self) -> Rpc {
        self.rpc
    }

    pub(crate) fn record(&self, record: CallRecord) {
        let mut state = self.state.borrow_mut();
        if self.wants_tunnel {
            record.carried(state.request.kept.len(), 0);
        }
        state.record = Some(record);
    }

    /// Looks at or changes what is recorded of the call.
    pub(crate) fn with_record<R>(&self, act: impl FnOnce(&mut CallRecord) -> R) -> Option<R> {
        self.state.borrow_mut().record.as_mut().map(act)
    }

    /// Starts another try. The record of the one before is dropped, which writes it down.
    pub(crate) fn attempt(&self, attempt: AttemptRecord) {
        self.state.borrow_mut().attempt = Some(attempt);
    }

    pub(crate) fn with_attempt<R>(&self, act: impl FnOnce(&mut AttemptRecord) -> R) -> Option<R> {
        self.state.borrow_mut().attempt.as_mut().map(act)
    }

    /// Sets the call's deadline, and whose limit that is.
    pub(crate) fn end_by(self: &Rc<Self>, deadline: Option<Moment>, limit: Limit) {
        self.deadline.set(deadline);
        self.limit.set(limit);
        if limit != Limit::default() {
            self.with_record(|record| record.limited_by(limit));
        }
        if let Some(deadline) = deadline {
            self.worker.deadlines.set(Rc::clone(self) as Rc<dyn Timed>, deadline);
        }
    }

    /// Takes the deadline back. Another is to be set.
    pub(crate) fn forget_deadline(&self) {
        self.worker.deadlines.remove(self as &dyn Timed);
        self.deadline.set(None);
    }

    /// Sets another deadline for a call that goes on to another service.
    #[cold]
    pub(crate) fn continue_until(self: &Rc<Self>, own: Option<Moment>) {
        let before = self.deadline.get();
        let is_own = own.is_some_and(|own| before.is_none_or(|before| own < before));
        self.forget_deadline();
        let limit = if is_own { Limit::Contracts } else { Limit::Callers };
        self.end_by(if is_own { own } else { before }, limit);
        self.with_record(|record| record.limited_by(limit));
    }

    /// Whose time limit the call has.
    pub(crate) fn limit(&self) -> Limit {
        self.limit.get()
    }

    /// The request's head: first as it came in, later as it is sent on.
    pub(crate) fn head(&self) -> Ref<'_, Headers> {
        Ref::map(self.state.borrow(), |state| &state.request.head)
    }

    pub(crate) fn head_mut(&self) -> RefMut<'_, Headers> {
        RefMut::map(self.state.borrow_mut(), |state| &mut state.request.head)
    }

    /// Whether the caller's side is a raw connection: its bytes are the body, and its client knows of no call.
    pub(crate) fn carries_bytes(&self) -> bool {
        matches!(&self.caller, Side::Socket(socket) if socket.is_raw())
    }

    /// Whether it asks for a tunnel or an upgrade: after the head of the answer, another protocol than HTTP.
    pub(crate) fn wants_tunnel(&self) -> bool {
        self.wants_tunnel
    }

    /// Whether all that was sent of the request is still here, so that it can be sent again.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.state.borrow().request.is_kept
    }

    /// Whether the call can surely be sent again when a service closes the connection that it was sent over unanswered.
    pub(crate) fn survives_a_stale_connection(&self) -> bool {
        let request = &self.state.borrow().request;
        request.is_over && request.is_kept && request.head.is_idempotent()
    }

    /// The peer that an inbound call counts for, for as long as it runs.
    pub(crate) fn peer(&self) -> Option<Rc<Load>> {
        self.state.borrow().slot.as_ref().and_then(CallSlot::peer).cloned()
    }

    /// Counts an outbound call for this callee. False if the callee may have no more calls.
    pub(crate) fn goes_to(&self, callee: &Rc<Load>) -> bool {
        self.state.borrow_mut().slot.as_mut().is_none_or(|slot| slot.goes_to(callee))
    }

    /// The call waits for a connection to this callee, which is charged for the bytes that the call holds meanwhile.
    #[cold]
    pub(crate) fn waits_for(&self, callee: &Rc<Load>) {
        self.state.borrow_mut().request.charge_held(callee);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.state.borrow().answer == Answer::Over
    }

    /// Sends what has arrived of the request over a connection. `adapt` completes the head for this try.
    pub(crate) fn send_over(
        self: &Rc<Self>,
        link: &Rc<Link>,
        adapt: impl FnOnce(&mut Headers, Option<&AttemptRecord>, Option<Moment>),
    ) -> Result<(), CannotOpen> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let request = &mut state.request;
        adapt(&mut request.head, state.attempt.as_ref(), self.deadline.get());
        let is_head_all = request.is_head_all;
        let stream = link.open(&request.head, is_head_all, Rc::clone(self) as _)?;
        state.begin_try(Side::Stream(Rc::clone(link), stream), is_head_all, self);
        Ok(())
    }

    /// Sends what has arrived of the request over a connection of HTTP/1.1.
    pub(crate) fn send_over_socket(self: &Rc<Self>, socket: &Rc<Socket>) -> Result<(), http1::Error> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let request = &mut state.request;
        deadline::pass_on(&mut request.head, self.deadline.get(), self.worker.moment());
        if self.wants_tunnel {
            websocket::complete_request(&mut request.head);
        }
        let is_head_all = request.is_over && request.kept.is_empty() && request.trailers.is_none();
        if let Some(peer) = state.slot.as_ref().and_then(CallSlot::peer) {
            socket.belongs_to(peer);
        }
        socket.open(&request.head, is_head_all, Rc::clone(self) as _)?;
        state.begin_try(Side::Socket(Rc::clone(socket)), is_head_all, self);
        Ok(())
    }

    /// Joins the call with a raw connection, whose bytes are its body.
    pub(crate) fn send_raw(self: &Rc<Self>, socket: &Rc<Socket>) {
        socket.attach(Rc::clone(self) as _);
        if let Some(peer) = self.peer() {
            socket.belongs_to(&peer);
        }
        self.state.borrow_mut().begin_try(Side::Socket(Rc::clone(socket)), false, self);
    }

    /// Sends the request to a service within the sidecar. It can't be sent again.
    pub(crate) fn send_into(&self, pipe: Pipe) -> Headers {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let endpoint = Side::Pipe(pipe);
        state.request.resend(&endpoint, &self.caller, &mut state.slot, &self.worker);
        state.request.forget(&mut state.slot, &self.worker);
        state.endpoint = Some(endpoint);
        std::mem::take(&mut state.request.head)
    }

    /// A part of the request's body.
    pub(crate) fn request_data(&self, data: &[u8], is_end: bool) {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        if state.answer == Answer::Over {
            return self.caller.release(data.len());
        }
        if self.wants_tunnel {
            state.count_bytes(data.len(), 0);
        }
        let request = &mut state.request;
        if is_end {
            (request.is_over, request.whole_at) = (true, self.worker.moment());
        }
        request.received += data.len();
        let Some(endpoint) = &state.endpoint else {
            // The caller's window bounds what waits here.
            request.hold(data, &mut state.slot, &self.worker);
            if let Some(callee) = state.slot.as_ref().and_then(CallSlot::callee) {
                request.charge_held(callee);
            }
            if self.is_request_overdrawn(state) {
                drop(guard);
                self.shed_request();
            }
            return;
        };
        request.keep_or_forget(data, &mut state.slot, &self.worker);
        request.send(data, is_end, endpoint, &self.caller);
        if request.waiting > 0 && request.stuck_since.is_none() {
            request.stuck_since = Some(self.worker.moment());
        }
        if request.waiting > 0 && self.is_request_overdrawn(state) {
            drop(guard);
            return self.shed_request();
        }
        if is_end && let Answer::Begun { tunnel: Tunnel::Answered, .. } = state.answer {
            state.end(self, None);
        }
    }

    pub(crate) fn request_trailers(&self, trailers: &Headers) {
        // Trailers must not say who calls: a service may merge them into the head (RFC 9110, section 6.5.1).
        let trailers = &*cleaned(trailers, trailers.has_like(CLIENT_CERT), |list| list.remove_like(CLIENT_CERT));
        if trailers.is_empty() {
            return self.request_data(&[], true);
        }
        if let Some(takes) = self.is_too_large_for_service(trailers) {
            return self.fail(&self.too_large_for(takes));
        }
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        (state.request.is_over, state.request.whole_at) = (true, self.worker.moment());
        if state.answer != Answer::Over {
            state.keeps_list(trailers.list_bytes());
        }
        if let Some(endpoint) = &state.endpoint {
            endpoint.send_trailers(trailers);
            // Requests of gRPC have no trailers: they are not worth keeping for another try.
            state.request.forget(&mut state.slot, &self.worker);
        } else if state.answer != Answer::Over {
            state.request.trailers = Some(Box::new(trailers.clone()));
        }
    }

    /// Parts of the request that had to wait have been sent.
    pub(crate) fn request_sent(&self, bytes: usize) {
        let mut state = self.state.borrow_mut();
        state.request.waited(bytes, self.worker.moment());
        state.request.sent(bytes, &self.caller);
    }

    /// The caller has reset the call with this code, or its connection is gone.
    pub(crate) fn caller_gone(&self, code: Code) {
        let mut state = self.state.borrow_mut();
        if state.answer != Answer::Over {
            if let Some(endpoint) = &state.endpoint {
                endpoint.reset(if code == Code::NO_ERROR { Code::CANCEL } else { code });
            }
            state.close(self);
        }
        state.release_all();
    }

    /// The failure for an answer whose header list, or whose trailers, are over the limit.
    pub(crate) fn answer_too_large(&self) -> Failure {
        Failure::answer_headers_too_large(self.worker.shared.args.header_list_bytes)
    }

    /// The failure for a request whose header list, or whose trailers, are longer than the local service takes.
    #[cold]
    pub(crate) fn too_large_for(&self, limit: u32) -> Failure {
        let name = self.worker.shared.local_name();
        Failure::headers_too_large_for(name, limit)
    }

    /// How many bytes of a header list the service takes, if this one is longer.
    fn is_too_large_for_service(&self, trailers: &Headers) -> Option<u32> {
        let state = self.state.borrow();
        let (Hop::Inbound, Some(Side::Stream(link, _))) = (self.hop, &state.endpoint) else { return None };
        Some(link.header_list_bytes()).filter(|takes| trailers.list_bytes() > *takes as usize)
    }

    fn is_begun(&self) -> bool {
        matches!(self.state.borrow().answer, Answer::Begun { .. })
    }
}

impl Timed for Call {
    fn place(&self) -> &Cell<Option<Place>> {
        &self.place
    }

    fn expired(self: Rc<Self>) {
        self.worker.tick();
        self.fail(&self.way.deadline_passed(&self));
    }
}

#[cfg(test)]
mod play;
#[cfg(test)]
mod tests;
