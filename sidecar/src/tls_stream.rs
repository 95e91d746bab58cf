//! TLS over a socket, after the handshake. It reads as much as the socket has in one system call, where rustls by
//! itself asks for 4 KiB at a time, and opens all records that came with it.

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

/// See the module.
pub(crate) struct TlsStream<C> {
    tcp: TcpStream,
    session: C,
    /// Bytes that were opened and not taken yet: mostly none, and asking rustls for none costs more than a counter.
    opened: usize,
    /// The peer has said that it sends no more.
    is_closed: bool,
}

/// More than one record's plaintext: what an incomplete record that came before may add to what is read now.
const HELD_BACK: usize = 17 * 1024;
/// Less room than this is not worth a system call.
const LEAST_READ: usize = 4 * 1024;

thread_local! {
    /// Where records lie until they are opened, which is before the read returns: so one is enough for a thread.
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

impl<C, S> TlsStream<C>
where
    C: std::ops::DerefMut<Target = ConnectionCommon<S>>,
    S: SideData,
{
    fn new(tcp: TcpStream, session: C) -> Self {
        let mut stream = Self { tcp, session, opened: 0, is_closed: false };
        // Some may have come with the handshake's last message. An error is told again when more comes.
        let _ = stream.open_records();
        stream
    }

    /// Opens the records that rustls has.
    fn open_records(&mut self) -> Result<(), rustls::Error> {
        let state = self.session.process_new_packets()?;
        self.opened = state.plaintext_bytes_to_read();
        self.is_closed = state.peer_has_closed();
        Ok(())
    }

    /// Moves plaintext that is there into `out`.
    fn take_plaintext(&mut self, out: &mut ReadBuf<'_>) -> io::Result<()> {
        while self.opened > 0 && out.remaining() > 0 {
            let count = self.session.reader().read(out.initialize_unfilled())?;
            out.advance(count);
            self.opened = self.opened.saturating_sub(count);
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.is_closed && self.opened == 0
    }

    /// Reads once from the socket and opens what came; false when there is nothing.
    fn read_records(&mut self, out: &mut ReadBuf<'_>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        RECORDS.with_borrow_mut(|records| {
            let room = out.remaining() - HELD_BACK;
            if records.len() < room {
                records.resize(room, 0);
            }
            let mut read = ReadBuf::new(&mut records[..room]);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut read))?;
            let mut records = read.filled();
            if records.is_empty() {
                // Without a close_notify this is an error, which the reader tells.
                self.session.read_tls(&mut records)?;
                return Poll::Ready(self.session.reader().read(out.initialize_unfilled()).map(drop));
            }
            while !records.is_empty() {
                self.session.read_tls(&mut records)?;
                if let Err(e) = self.open_records() {
                    // The peer is told why, if it still listens.
                    let _ = self.write_records(cx);
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, e)));
                }
                self.take_plaintext(out)?;
            }
            Poll::Ready(Ok(()))
        })
    }

    fn write_records(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            let mut socket = Socket { tcp: &mut self.tcp, cx };
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
struct Socket<'a, 'b> {
    tcp: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
}

fn now_or_would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl Write for Socket<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        now_or_would_block(Pin::new(&mut *self.tcp).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        now_or_would_block(Pin::new(&mut *self.tcp).poll_write_vectored(self.cx, parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<C, S> AsyncRead for TlsStream<C>
where
    C: std::ops::DerefMut<Target = ConnectionCommon<S>> + Unpin,
    S: SideData,
{
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        self.take_plaintext(out)?;
        while !self.has_ended() && out.remaining() >= HELD_BACK + LEAST_READ {
            match self.read_records(out, cx) {
                Poll::Ready(result) => result?,
                Poll::Pending if out.filled().len() == before => return Poll::Pending,
                Poll::Pending => break,
            }
            if out.filled().len() > before {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<C, S> AsyncWrite for TlsStream<C>
where
    C: std::ops::DerefMut<Target = ConnectionCommon<S>> + Unpin,
    S: SideData,
{
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // What was written before goes out first, so that no more than one write lies in rustls.
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
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
