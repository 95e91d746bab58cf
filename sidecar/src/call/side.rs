//! One side of a call: a stream of HTTP/2, or a pipe to what speaks something else.

use std::rc::Rc;

use weft_wire::{Code, Headers, StreamId};

use crate::{headers::to_header_map, link::Link, pipe::Pipe};

/// Where parts come from and go to.
pub(crate) enum Side {
    Stream(Rc<Link>, StreamId),
    Pipe(Pipe),
}

impl Side {
    /// How many bytes were not sent at once.
    pub(super) fn send_data(&self, data: &[u8], is_end: bool) -> usize {
        match self {
            Self::Stream(link, stream) => link.send_data(*stream, data, is_end),
            Self::Pipe(pipe) => {
                pipe.put_data(data, is_end);
                data.len()
            }
        }
    }

    pub(super) fn send_trailers(&self, trailers: &Headers) {
        match self {
            Self::Stream(link, stream) => link.send_trailers(*stream, trailers),
            Self::Pipe(pipe) => pipe.put_trailers(to_header_map(trailers)),
        }
    }

    /// Gives back the head's list where it is not needed any more.
    pub(super) fn respond(&self, head: Headers, is_end: bool) -> Option<Headers> {
        match self {
            Self::Stream(link, stream) => {
                link.respond(*stream, &head, is_end);
                Some(head)
            }
            Self::Pipe(pipe) => {
                // A body may not come after an interim answer, and hyper makes its own.
                if head.status().is_some_and(|status| status >= 200) {
                    pipe.put_head(head, is_end);
                }
                None
            }
        }
    }

    pub(super) fn reset(&self, code: Code) {
        match self {
            Self::Stream(link, stream) => link.reset(*stream, code),
            Self::Pipe(pipe) => pipe.break_off(code),
        }
    }

    pub(super) fn detach(&self) {
        if let Self::Stream(link, stream) = self {
            link.detach(*stream);
        }
    }

    pub(super) fn release(&self, bytes: usize) {
        match self {
            _ if bytes == 0 => {}
            Self::Stream(link, stream) => link.release(*stream, bytes),
            Self::Pipe(pipe) => pipe.grant(bytes),
        }
    }
}
