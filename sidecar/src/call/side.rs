//! One side of a call: a stream of HTTP/2, a connection of its own, or a pipe to a service within the sidecar.

use std::rc::Rc;

use weft_wire::{Code, Headers, StreamId};

use crate::{
    message::headers::to_header_map,
    thread::loads::Load,
    transport::{link::Link, pipe::Pipe, socket::Socket},
};

/// Where parts come from and go to.
pub(crate) enum Side {
    Stream(Rc<Link>, StreamId),
    Socket(Rc<Socket>),
    Pipe(Pipe),
}

impl Side {
    /// Returns how many bytes could not be sent at once.
    pub(super) fn send_data(&self, data: &[u8], is_end: bool) -> usize {
        match self {
            Self::Stream(link, stream) => link.send_data(*stream, data, is_end),
            Self::Socket(socket) => socket.send_data(data, is_end),
            Self::Pipe(pipe) => {
                pipe.put_data(data, is_end);
                data.len()
            }
        }
    }

    pub(super) fn send_trailers(&self, trailers: &Headers) {
        match self {
            Self::Stream(link, stream) => link.send_trailers(*stream, trailers),
            Self::Socket(socket) => socket.send_trailers(trailers),
            Self::Pipe(pipe) => pipe.put_trailers(to_header_map(trailers)),
        }
    }

    /// Returns the head's list if it is no longer needed.
    pub(super) fn respond(&self, head: Headers, is_end: bool) -> Option<Headers> {
        match self {
            Self::Stream(link, stream) => {
                link.respond(*stream, &head, is_end);
                Some(head)
            }
            Self::Socket(socket) => {
                socket.respond(&head, is_end);
                Some(head)
            }
            // A service within the sidecar makes no calls.
            Self::Pipe(_) => Some(head),
        }
    }

    /// Whether the peer does not read what is sent to it.
    pub(super) fn is_congested(&self) -> bool {
        match self {
            Self::Stream(link, _) => link.is_congested(),
            Self::Socket(socket) => socket.is_congested(),
            Self::Pipe(_) => false,
        }
    }

    /// Who is charged for the bytes that wait for this side. `None` where the connection carries nothing else: then it
    /// charges its owner itself.
    pub(super) fn load(&self) -> Option<Rc<Load>> {
        match self {
            Self::Stream(link, _) => Some(link.load()),
            Self::Socket(_) | Self::Pipe(_) => None,
        }
    }

    pub(super) fn reset(&self, code: Code) {
        match self {
            Self::Stream(link, stream) => link.reset(*stream, code),
            Self::Socket(socket) => socket.reset(code),
            Self::Pipe(pipe) => pipe.break_off(code),
        }
    }

    pub(super) fn detach(&self) {
        match self {
            Self::Stream(link, stream) => link.detach(*stream),
            Self::Socket(socket) => socket.detach(),
            Self::Pipe(_) => {}
        }
    }

    /// Takes a head's list back for reuse.
    pub(super) fn recycle(&self, head: Headers) {
        match self {
            Self::Stream(link, _) => link.recycle(head),
            Self::Socket(socket) => socket.recycle(head),
            Self::Pipe(_) => {}
        }
    }

    pub(super) fn release(&self, bytes: usize) {
        match self {
            _ if bytes == 0 => {}
            Self::Stream(link, stream) => link.release(*stream, bytes),
            Self::Socket(socket) => socket.release(bytes),
            Self::Pipe(pipe) => pipe.grant(bytes),
        }
    }
}
