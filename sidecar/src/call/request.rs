//! A call's request: what has come of it, what was sent on, and what is kept to be sent again.

use weft_mesh::limits;
use weft_wire::Headers;

use super::Side;
use crate::{budget::Charge, moment::Moment, worker::Worker};

/// The request, as far as it has come.
pub(super) struct Request {
    pub(super) head: Headers,
    /// Its body from the beginning: until there is somewhere to send it, and then as long as it may be sent again.
    pub(super) kept: Vec<u8>,
    /// In a box, as hardly any request has them.
    pub(super) trailers: Option<Box<Headers>>,
    pub(super) is_kept: bool,
    /// Its head said that nothing follows. A body that turns out to be empty is sent on as one all the same: gRPC's
    /// servers need not take END_STREAM on the head.
    pub(super) is_head_all: bool,
    /// All of it is here.
    pub(super) is_over: bool,
    /// Since when, or since when the call is there.
    pub(super) whole_at: Moment,
    /// Bytes of the body that have come from the caller.
    pub(super) received: usize,
    /// Bytes of the body that this try has sent, and those that wait for the endpoint's window.
    pub(super) sent: usize,
    pub(super) waiting: usize,
    /// Since when the endpoint has taken none of those that wait.
    pub(super) stuck_since: Option<Moment>,
    /// Who is charged for those that wait.
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

    /// Sends what is kept, as the beginning of a try.
    pub(super) fn resend(&mut self, endpoint: &Side, caller: &Side, worker: &Worker) {
        let kept = std::mem::take(&mut self.kept);
        let is_end = self.is_over && self.trailers.is_none();
        if !kept.is_empty() || is_end {
            self.send(&kept, is_end, endpoint, caller);
        }
        self.kept = kept;
        if let Some(trailers) = &self.trailers {
            endpoint.send_trailers(trailers);
        }
        if !self.may_keep(0, worker) {
            self.forget(worker);
        }
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

    /// Parts that had to wait have been sent.
    pub(super) fn waited(&mut self, bytes: usize, now: Moment) {
        self.waiting -= bytes.min(self.waiting);
        self.stuck_since = (self.waiting > 0).then_some(now);
        if let Some(charge) = &mut self.charge {
            charge.take(bytes);
        }
    }

    /// Lets the caller send as much again as was sent on, but for what an earlier try had sent already.
    pub(super) fn sent(&mut self, bytes: usize, caller: &Side) {
        self.sent += bytes;
        if self.sent > self.released {
            caller.release(self.sent - self.released);
            self.released = self.sent;
        }
    }

    /// Lets the caller's connection have its window back also for what was not sent on.
    pub(super) fn release_all(&mut self, caller: &Side) {
        caller.release(self.received - self.released.min(self.received));
        self.released = self.received;
        self.charge = None;
    }

    /// Whether so much more may be kept for another try.
    pub(super) fn may_keep(&self, more: usize, worker: &Worker) -> bool {
        self.kept.len() + more <= limits::REPLAY_BYTES_PER_CALL
            && worker.replay_bytes.get() + more <= limits::REPLAY_BYTES
    }

    pub(super) fn keep(&mut self, data: &[u8], worker: &Worker) {
        worker.replay_bytes.add(data.len());
        if self.kept.capacity() == 0 {
            self.kept = worker.body_buffer();
        }
        self.kept.extend_from_slice(data);
    }

    /// It won't be sent again.
    pub(super) fn forget(&mut self, worker: &Worker) {
        self.is_kept = false;
        if !self.kept.is_empty() {
            worker.replay_bytes.take(self.kept.len());
            worker.give_back_body(std::mem::take(&mut self.kept));
        }
    }
}
