//! Reads what comes over the connection, and keeps what can't be handled yet.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::ReadBuf;

use super::{Fate, Occasion, Role, SocketDriver, SocketError, Stream};
use crate::thread::{
    account::{LITTLE_BYTES, Reads},
    give_way::{BYTES_A_TURN, give_way},
};

/// How many bytes of pipelined requests are read while the current one is not answered.
const PIPELINED_BYTES: usize = 4 * 1024;

impl<IO: Stream, F: FnMut(Occasion) + Unpin> SocketDriver<IO, F> {
    /// Reads until there is nothing more, and handles what came.
    pub(super) fn read(&mut self, cx: &mut Context<'_>) -> Result<(), SocketError> {
        let mut buffer = self.worker.read_buffer();
        let result = self.read_into(&mut buffer, cx);
        self.worker.give_back(buffer);
        result
    }

    fn read_into(&mut self, buffer: &mut [u8], cx: &mut Context<'_>) -> Result<(), SocketError> {
        self.handle_unread()?;
        let mut left = BYTES_A_TURN;
        while !self.has_ended {
            let most = match self.reads() {
                Reads::All => buffer.len(),
                Reads::Little => LITTLE_BYTES,
                Reads::Nothing => break,
            };
            let room = self.room(buffer.len()).min(most);
            self.socket.core.borrow_mut().is_read_held = room == 0;
            if room == 0 {
                break;
            }
            if left == 0 {
                give_way(cx);
                break;
            }
            let is_long = self.is_long(buffer.len());
            let count = if is_long { self.read_behind(room, cx) } else { self.read_with_unread(room, buffer, cx) };
            let Poll::Ready(count) = count? else { break };
            left = left.saturating_sub(count);
            if count > 0 && self.is_before_request() {
                return Err(SocketError::Unasked);
            }
            if count == 0 {
                self.has_ended = true;
                self.ended_since = Some(self.worker.now());
            } else if is_long {
                self.take_unread()?;
            } else {
                let whole = self.unread.len() + count;
                self.unread.clear();
                self.take(&buffer[..whole])?;
            }
        }
        if self.has_ended && !self.is_end_handled {
            self.ended()?;
        }
        if self.has_surplus() { Err(SocketError::Unasked) } else { Ok(()) }
    }

    /// Whether what comes now was sent before the service could see the request of the call that runs, on a connection that
    /// has carried another call: it is not this one's answer. Each turn reads before it writes.
    fn is_before_request(&self) -> bool {
        self.socket.role == Role::Client && self.socket.was_used.get() && self.socket.core.borrow().is_request_unsent()
    }

    /// Whether the service has sent something that belongs to no call. It gets no more requests over this connection: the
    /// next call, which may be of another caller, would take the bytes for its answer.
    fn has_surplus(&self) -> bool {
        self.socket.role == Role::Client && !self.unread.is_empty() && self.socket.core.borrow().call.is_none()
    }

    /// Reads into the worker's buffer, after the unread bytes. Returns how much came.
    fn read_with_unread(&mut self, room: usize, buffer: &mut [u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let begin = self.unread.len();
        buffer[..begin].copy_from_slice(&self.unread);
        let mut read = ReadBuf::new(&mut buffer[begin..begin + room]);
        Pin::new(&mut self.io).poll_read(cx, &mut read).map_ok(|()| read.filled().len())
    }

    /// Appends to the unread bytes in place, which saves a copy of them. Returns how much came.
    fn read_behind(&mut self, room: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let begin = self.unread.len();
        self.unread.resize(begin + room, 0);
        let mut read = ReadBuf::new(&mut self.unread[begin..]);
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut read);
        let count = read.filled().len();
        self.unread.truncate(begin + count);
        polled.map_ok(|()| count)
    }

    /// Whether the unread bytes leave little room in the worker's buffer: the first part of a long head, which
    /// `--header-list-bytes` bounds.
    fn is_long(&self, buffer: usize) -> bool {
        self.unread.len() > buffer / 2
    }

    /// How much the memory budget lets it read for now. Its writes never depend on reads.
    fn reads(&self) -> Reads {
        self.socket.counted.reads(|| (self.socket.core.borrow().held_bytes(), false), &self.socket.driver)
    }

    /// How much may be read now.
    fn room(&self, buffer: usize) -> usize {
        let core = self.socket.core.borrow();
        let most = if self.is_long(buffer) { buffer } else { buffer - self.unread.len() };
        match core.fate {
            Fate::Aborted => 0,
            // Read and discarded: a peer may not look for its answer before its own bytes are read.
            Fate::Closing => most,
            _ if core.is_full() => 0,
            _ if core.takes_input() => most,
            // Only to see that it ends.
            _ if self.unread.is_empty() => PIPELINED_BYTES,
            _ => 0,
        }
    }

    /// Handles bytes that had to wait.
    fn handle_unread(&mut self) -> Result<(), SocketError> {
        if self.unread.is_empty() || !self.socket.core.borrow().takes_input() {
            return Ok(());
        }
        self.take_unread()
    }

    fn take_unread(&mut self) -> Result<(), SocketError> {
        self.needs_more = false;
        let unread = std::mem::take(&mut self.unread);
        let mut input = &unread[..];
        let handled = self.handle(&mut input);
        // A long partial head stays in its buffer.
        self.unread = if input.len() == unread.len() { unread } else { input.to_vec() };
        handled
    }

    /// Handles as much of the input as possible; the rest is kept.
    fn take(&mut self, bytes: &[u8]) -> Result<(), SocketError> {
        self.needs_more = false;
        let mut input = bytes;
        let handled = self.handle(&mut input);
        self.unread.extend_from_slice(input);
        handled
    }
}
