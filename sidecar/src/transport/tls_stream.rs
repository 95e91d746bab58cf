//! TLS over a socket, after the handshake. One system call reads as much as the socket has (rustls by itself asks for
//! 4 KiB at a time), and all records that came with it are decrypted.
//!
//! Every loop here makes progress or ends, whatever the peer sends: one worker serves many connections, so a loop that
//! spins is an outage for all of them. A comment at each loop says what shrinks in a round.

use std::{
    cell::RefCell,
    io::{self, IoSlice, Read, Write},
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::{ConnectionCommon, ServerConnection, SideData, client::ClientConnection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::thread::{account::LITTLE_BYTES, give_way::give_way};

/// See the module. `C` is a client's or a server's session, `IO` what it runs over.
pub(crate) struct TlsStream<C, IO = TcpStream> {
    io: IO,
    session: C,
    /// Bytes that were decrypted and not taken yet. Mostly none; to ask rustls for them would cost more than this
    /// counter.
    opened: usize,
    /// The peer has sent a close_notify: anything after it is ignored (RFC 8446, section 6.1).
    is_closed: bool,
}

/// More than one record's plaintext, which an incomplete record from an earlier read may add to this read.
const HELD_BACK: usize = 17 * 1024;
/// Less room than this is not worth a system call.
const LEAST_READ: usize = 4 * 1024;
/// The room that a read needs, so that everything from one system call can be decrypted into it.
const LEAST_ROOM: usize = HELD_BACK + LEAST_READ;
const _: () = assert!(LEAST_ROOM <= LITTLE_BYTES, "`Reads::Little` is enough for a read");
/// How many reads of one turn may bring no plaintext. A peer may send records without any (RFC 8446, section 5.4) as
/// fast as they are decrypted, and the other connections of the worker must have their turn.
const EMPTY_READS_A_TURN: usize = 8;

thread_local! {
    /// Holds records until they are decrypted, which is before the read returns: so one per thread is enough.
    static RECORDS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl TlsStream<ServerConnection> {
    pub(crate) fn server(stream: tokio_rustls::server::TlsStream<TcpStream>) -> Self {
        let (tcp, session) = stream.into_inner();
        Self::new(tcp, session)
    }
}

impl TlsStream<ClientConnection> {
    pub(crate) fn client(stream: tokio_rustls::client::TlsStream<TcpStream>) -> Self {
        let (tcp, session) = stream.into_inner();
        Self::new(tcp, session)
    }
}

impl<C, S, IO> TlsStream<C, IO>
where
    C: std::ops::DerefMut<Target = ConnectionCommon<S>>,
    S: SideData,
    IO: AsyncRead + AsyncWrite + Unpin,
{
    pub(crate) fn new(io: IO, session: C) -> Self {
        let mut stream = Self { io, session, opened: 0, is_closed: false };
        // Some records may have come with the handshake's last message. An error is reported again when more comes.
        let _ = stream.open_records();
        stream
    }

    /// Decrypts the records that rustls has.
    fn open_records(&mut self) -> Result<(), rustls::Error> {
        let state = self.session.process_new_packets()?;
        self.opened = state.plaintext_bytes_to_read();
        self.is_closed = state.peer_has_closed();
        Ok(())
    }

    /// Moves decrypted bytes into `out`.
    fn take_plaintext(&mut self, out: &mut ReadBuf<'_>) -> io::Result<()> {
        // Each round takes some of what is decrypted.
        while self.opened > 0 && out.remaining() > 0 {
            let count = self.session.reader().read(out.initialize_unfilled())?;
            out.advance(count);
            self.opened = if count == 0 { 0 } else { self.opened.saturating_sub(count) };
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.is_closed && self.opened == 0
    }

    /// Reads once from the socket and decrypts what came.
    fn read_records(&mut self, out: &mut ReadBuf<'_>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        RECORDS.with_borrow_mut(|records| {
            let room = out.remaining() - HELD_BACK;
            if records.len() < room {
                records.resize(room, 0);
            }
            let mut read = ReadBuf::new(&mut records[..room]);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
            let mut records = read.filled();
            if records.is_empty() {
                // Without a close_notify this is an error, which rustls's reader returns.
                self.session.read_tls(&mut records)?;
                let _ = self.session.reader().read(out.initialize_unfilled())?;
                self.is_closed = true;
                return Poll::Ready(Ok(()));
            }
            // Each round takes some of what was read. After a close_notify rustls takes nothing more, and what follows
            // is discarded.
            while !records.is_empty() && !self.is_closed {
                if self.session.read_tls(&mut records)? == 0 {
                    return Poll::Ready(Err(io::Error::other("TLS takes no more of what the peer has sent")));
                }
                if let Err(e) = self.open_records() {
                    // Sends the alert, if the peer still reads.
                    let _ = self.write_records(cx);
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, e)));
                }
                self.take_plaintext(out)?;
            }
            Poll::Ready(Ok(()))
        })
    }

    fn write_records(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Each round writes some of what the session has, and nothing is added meanwhile.
        while self.session.wants_write() {
            let mut socket = Socket { io: &mut self.io, cx };
            match self.session.write_tls(&mut socket) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The socket as rustls writes to it.
struct Socket<'a, 'b, IO> {
    io: &'a mut IO,
    cx: &'a mut Context<'b>,
}

fn now_or_would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl<IO: AsyncWrite + Unpin> Write for Socket<'_, '_, IO> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        now_or_would_block(Pin::new(&mut *self.io).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        now_or_would_block(Pin::new(&mut *self.io).poll_write_vectored(self.cx, parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<C, S, IO> AsyncRead for TlsStream<C, IO>
where
    C: std::ops::DerefMut<Target = ConnectionCommon<S>> + Unpin,
    S: SideData,
    IO: AsyncRead + AsyncWrite + Unpin,
{
    /// Needs room for [`LEAST_ROOM`] bytes, unless some are already decrypted. If nothing was added to `out`, the peer
    /// has ended its side with a close_notify; an end without one is an error.
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        self.take_plaintext(out)?;
        if out.filled().len() > before || self.has_ended() {
            return Poll::Ready(Ok(()));
        }
        if out.remaining() < LEAST_ROOM {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the buffer is too small to read TLS",
            )));
        }
        for _ in 0..EMPTY_READS_A_TURN {
            ready!(self.read_records(out, cx))?;
            if out.filled().len() > before || self.has_ended() {
                return Poll::Ready(Ok(()));
            }
        }
        give_way(cx);
        Poll::Pending
    }
}

impl<C, S, IO> AsyncWrite for TlsStream<C, IO>
where
    C: std::ops::DerefMut<Target = ConnectionCommon<S>> + Unpin,
    S: SideData,
    IO: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // Earlier writes go out first, so that rustls never holds more than one.
        ready!(self.write_records(cx))?;
        let taken = self.session.writer().write(bytes)?;
        match self.write_records(cx) {
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            _ => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_records(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.session.send_close_notify();
        ready!(self.write_records(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, task::Waker, thread, time::Duration};

    use super::*;
    use crate::trial::tls::{MemoryStream, handshake};

    /// Runs code that must end, on its own thread: a loop that makes no progress would never return.
    fn must_end(what: impl FnOnce() + Send + 'static) {
        let (sender, ended) = mpsc::channel();
        let thread = thread::spawn(move || {
            what();
            let _ = sender.send(());
        });
        match ended.recv_timeout(Duration::from_secs(60)) {
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("it never ends"),
            _ => thread.join().expect("it does what is expected"),
        }
    }

    /// One read: what came, or `None` if there is nothing yet.
    fn read(stream: &mut (impl AsyncRead + Unpin), room: usize) -> Option<io::Result<Vec<u8>>> {
        let mut buffer = vec![0; room];
        let mut out = ReadBuf::new(&mut buffer);
        match Pin::new(stream).poll_read(&mut Context::from_waker(Waker::noop()), &mut out) {
            Poll::Ready(result) => Some(result.map(|()| out.filled().to_vec())),
            Poll::Pending => None,
        }
    }

    /// What a session has to send.
    fn sent<S: SideData>(session: &mut ConnectionCommon<S>) -> Vec<u8> {
        let mut bytes = Vec::new();
        while session.wants_write() {
            session.write_tls(&mut bytes).expect("memory takes it");
        }
        bytes
    }

    /// Everything in one write: a message, a close_notify and more bytes.
    fn close_and_go_on<C, S, P, T>(session: C, mut peer: P)
    where
        C: std::ops::DerefMut<Target = ConnectionCommon<S>> + Unpin,
        P: std::ops::DerefMut<Target = ConnectionCommon<T>>,
        S: SideData,
        T: SideData,
    {
        peer.writer().write_all(b"hello").expect("there is room");
        peer.send_close_notify();
        let mut bytes = sent(&mut *peer);
        // rustls takes 4 KiB at a time, so some of these are left when it has seen the close_notify.
        bytes.extend([b'x'; 20_000]);
        let pipe = MemoryStream::default();
        pipe.push(bytes);
        let mut stream = TlsStream::new(pipe, session);
        let room = LEAST_ROOM + 1024;
        assert_eq!(read(&mut stream, room).expect("it is there").expect("it is whole"), b"hello");
        for _ in 0..2 {
            assert_eq!(read(&mut stream, room).expect("the end").expect("it was announced"), b"");
        }
    }

    #[test]
    fn bytes_after_a_close_notify_are_discarded() {
        must_end(|| {
            let (client, server) = handshake();
            close_and_go_on(server, client);
        });
        must_end(|| {
            let (client, server) = handshake();
            close_and_go_on(client, server);
        });
    }

    #[test]
    fn an_end_without_a_close_notify_is_an_error() {
        let (_, server) = handshake();
        let pipe = MemoryStream::default();
        pipe.end();
        let read = read(&mut TlsStream::new(pipe, server), LEAST_ROOM).expect("the end");
        assert_eq!(read.expect_err("something may be missing").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_buffer_that_is_too_small_is_an_error_and_not_an_end() {
        let (_, server) = handshake();
        let read = read(&mut TlsStream::new(MemoryStream::default(), server), LEAST_ROOM - 1).expect("it is ready");
        assert_eq!(read.expect_err("nothing can be read").kind(), io::ErrorKind::InvalidInput);
    }

    /// Each read brings a record without plaintext: after some of them other connections get a turn.
    #[test]
    fn records_without_plaintext_do_not_block_the_worker() {
        let (mut client, server) = handshake();
        let pipe = MemoryStream::default();
        for _ in 0..2 * EMPTY_READS_A_TURN {
            client.refresh_traffic_keys().expect("the handshake is over");
            pipe.push(sent(&mut client));
        }
        client.writer().write_all(b"hello").expect("there is room");
        pipe.push(sent(&mut client));
        let mut stream = TlsStream::new(pipe.clone(), server);
        let room = LEAST_ROOM + 1024;
        assert!(read(&mut stream, room).is_none());
        assert_eq!(pipe.pieces(), EMPTY_READS_A_TURN + 1);
        assert!(read(&mut stream, room).is_none());
        assert_eq!(read(&mut stream, room).expect("it is there").expect("it is whole"), b"hello");
    }
}
