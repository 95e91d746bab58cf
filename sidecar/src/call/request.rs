//! A call's request: what has arrived of it, what was sent on, and what is kept for another try.

use std::rc::Rc;

use weft_mesh::limits;
use weft_wire::Headers;

use super::Side;
use crate::{
    thread::{account::Charge, loads::Load, slots::CallSlot, worker::Worker},
    time::moment::Moment,
};

/// What has arrived of the request.
pub(super) struct Request {
    pub(super) head: Headers,
    /// Its body from the start. It is kept until there is an endpoint, and then for as long as it may be sent again.
    pub(super) kept: Vec<u8>,
    /// In a box, as hardly any request has them.
    pub(super) trailers: Option<Box<Headers>>,
    pub(super) is_kept: bool,
    /// The head said that nothing follows. An empty body that comes after the head is sent on after the head, too: gRPC
    /// servers need not accept END_STREAM on the head.
    pub(super) is_head_all: bool,
    /// All of it is here.
    pub(super) is_over: bool,
    /// When it was complete; until it is, when the call started.
    pub(super) whole_at: Moment,
    /// Bytes of the body that came from the caller.
    pub(super) received: usize,
    /// Bytes of the body that this try has sent, and those that wait for the endpoint's window.
    pub(super) sent: usize,
    pub(super) waiting: usize,
    /// Since when the endpoint has taken none of the bytes that wait.
    pub(super) stuck_since: Option<Moment>,
    /// Charges the callee for the bytes that wait.
    pub(super) charge: Option<Charge>,
    /// Bytes of the body for which the caller got its window back.
    pub(super) released: usize,
}

impl Request {
    pub(super) fn new(head: Headers, is_whole: bool, now: Moment) -> Self {
        Self {
            head,
            kept: Vec::new(),
            trailers: None,
            is_kept: true,
            is_head_all: is_whole,
            is_over: is_whole,
            whole_at: now,
            received: 0,
            sent: 0,
            waiting: 0,
            stuck_since: None,
            charge: None,
            released: 0,
        }
    }

    /// Sends what is kept, at the start of a try.
    pub(super) fn resend(&mut self, endpoint: &Side, caller: &Side, slot: &mut Option<CallSlot>, worker: &Worker) {
        let kept = std::mem::take(&mut self.kept);
        let is_end = self.is_over && self.trailers.is_none();
        if !kept.is_empty() || is_end {
            self.send(&kept, is_end, endpoint, caller);
        }
        self.kept = kept;
        if let Some(trailers) = &self.trailers {
            endpoint.send_trailers(trailers);
        }
        if !may_keep(self.kept.len(), slot) {
            self.forget(slot, worker);
        }
    }

    /// Sends all of it over another connection as well. Returns how many bytes of the body have to wait.
    #[cold]
    pub(super) fn send_copy(&self, endpoint: &Side) -> usize {
        if self.is_head_all {
            return 0;
        }
        let is_end = self.trailers.is_none();
        let waiting = if self.kept.is_empty() && !is_end { 0 } else { endpoint.send_data(&self.kept, is_end) };
        if let Some(trailers) = &self.trailers {
            endpoint.send_trailers(trailers);
        }
        waiting
    }

    /// From now on it is sent by another try, which has sent and holds back so many bytes.
    #[cold]
    pub(super) fn goes_on(
        &mut self,
        (sent, waiting): (usize, usize),
        charge: Option<Charge>,
        caller: &Side,
        now: Moment,
    ) {
        (self.sent, self.waiting, self.charge) = (0, waiting, charge);
        self.stuck_since = (waiting > 0).then_some(now);
        self.sent(sent, caller);
    }

    pub(super) fn send(&mut self, data: &[u8], is_end: bool, endpoint: &Side, caller: &Side) {
        let waiting = endpoint.send_data(data, is_end);
        if waiting > 0 {
            self.wait(waiting, endpoint);
        }
        self.sent(data.len() - waiting, caller);
    }

    #[cold]
    fn wait(&mut self, bytes: usize, endpoint: &Side) {
        self.waiting += bytes;
        if self.charge.is_none() {
            self.charge = endpoint.load().map(Charge::new);
        }
        if let Some(charge) = &mut self.charge {
            charge.add(bytes);
        }
    }

    /// Charges this callee for the bytes that are held until there is a connection to it.
    #[cold]
    pub(super) fn charge_held(&mut self, callee: &Rc<Load>) {
        if self.kept.is_empty() {
            return;
        }
        let mut charge = Charge::new(Rc::clone(callee));
        charge.add(self.kept.len());
        self.charge = Some(charge);
    }

    /// Parts that had to wait have been sent.
    pub(super) fn waited(&mut self, bytes: usize, now: Moment) {
        self.waiting -= bytes.min(self.waiting);
        self.stuck_since = (self.waiting > 0).then_some(now);
        if let Some(charge) = &mut self.charge {
            charge.take(bytes);
        }
    }

    /// Returns flow-control credit to the caller for forwarded bytes, except for those that an earlier try forwarded
    /// already.
    pub(super) fn sent(&mut self, bytes: usize, caller: &Side) {
        self.sent += bytes;
        if self.sent > self.released {
            caller.release(self.sent - self.released);
            self.released = self.sent;
        }
    }

    /// Returns all flow-control credit to the caller, also for bytes that were not forwarded.
    pub(super) fn release_all(&mut self, caller: &Side) {
        caller.release(self.received - self.released.min(self.received));
        self.released = self.received;
        self.charge = None;
    }

    /// Keeps data that can't be sent yet, however much it is: the caller's window bounds it, and the budget counts it.
    /// If the limits of what may be kept for another try allow it, it counts against them now; else they are asked when
    /// it is sent.
    pub(super) fn hold(&mut self, data: &[u8], slot: &mut Option<CallSlot>, worker: &Worker) {
        self.keep(data, worker);
        may_keep(self.kept.len(), slot);
    }

    /// Keeps for another try what is being sent, or forgets all of it if it is too much.
    pub(super) fn keep_or_forget(&mut self, data: &[u8], slot: &mut Option<CallSlot>, worker: &Worker) {
        if self.is_kept && may_keep(self.kept.len() + data.len(), slot) {
            self.keep(data, worker);
        } else {
            self.forget(slot, worker);
        }
    }

    fn keep(&mut self, data: &[u8], worker: &Worker) {
        if self.kept.capacity() == 0 {
            self.kept = worker.body_buffer();
        }
        self.kept.extend_from_slice(data);
    }

    /// Drops what is kept: the request won't be sent again.
    pub(super) fn forget(&mut self, slot: &mut Option<CallSlot>, worker: &Worker) {
        self.is_kept = false;
        if !self.kept.is_empty() {
            if let Some(slot) = slot {
                slot.keeps(0);
            }
            worker.give_back_body(std::mem::take(&mut self.kept));
        }
    }
}

/// Whether this many bytes of a call may be kept for another try. If so, they count from now on; if not, none do.
fn may_keep(bytes: usize, slot: &mut Option<CallSlot>) -> bool {
    let Some(slot) = slot else { return false };
    let may = bytes <= limits::REPLAY_BYTES_PER_CALL && slot.keeps(bytes);
    if !may {
        slot.keeps(0);
    }
    may
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{transport::pipe::Pipe, trial};

    #[tokio::test]
    async fn requests_that_wait_for_an_endpoint_keep_within_the_limits_and_are_sent_whole() {
        let worker = trial::worker();
        let body = [7; limits::STREAM_WINDOW_BYTES as usize];
        let begin = |data: &[u8]| {
            let (mut request, mut slot) = (Request::new(Headers::new(), false, worker.moment()), worker.call_slot());
            request.hold(data, &mut slot, &worker);
            (request, slot)
        };
        let kept = || worker.replay_bytes.outbound.get();
        // First requests as large as a caller's window allows, then requests as large as may be kept of each.
        let large: Vec<_> = (0..2 * limits::REPLAY_BYTES / body.len()).map(|_| begin(&body)).collect();
        assert_eq!(kept(), 0, "none of it may be sent again");
        let part = &body[..limits::REPLAY_BYTES_PER_CALL];
        let small: Vec<_> = (0..2 * limits::REPLAY_BYTES / part.len()).map(|_| begin(part)).collect();
        assert_eq!(kept(), limits::REPLAY_BYTES / 2, "one alone gets half");

        let [endpoint, caller] = [(); 2].map(|()| Side::Pipe(Pipe::default()));
        let mut sent = |(mut request, mut slot): (Request, Option<CallSlot>)| {
            let bytes = request.kept.len();
            assert!(slot.as_mut().unwrap().goes_to(&Default::default()));
            request.resend(&endpoint, &caller, &mut slot, &worker);
            assert_eq!(request.sent + request.waiting, bytes, "nothing of it is lost");
            request.is_kept
        };
        assert!(sent(begin(&[])), "a call without a body can be tried again");
        assert!(sent(begin(part)), "and so can one to another service");
        assert!(large.into_iter().all(|call| !sent(call)));
        assert!(small.into_iter().all(&mut sent), "each went to another service");
        assert_eq!((kept(), worker.local_load.kept()), (0, 0));
    }
}
