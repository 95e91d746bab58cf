//! A TLS stream whose peer has a valid certificate and sends what a script says.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, Read, Write},
    ops::DerefMut,
    pin::Pin,
    rc::Rc,
    sync::{Arc, OnceLock},
    task::{Context, Poll, Waker},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::{ClientConfig, ClientConnection, ConnectionCommon, ServerConfig, ServerConnection, SideData};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_mesh::tls::{self, ClientCertificate, Svid, TrustBundle};

use crate::transport::tls_stream::TlsStream;

/// A connection in memory. Each read returns at most one pushed piece.
#[derive(Clone, Default)]
pub(crate) struct MemoryStream(Rc<RefCell<Bytes>>);

#[derive(Default)]
struct Bytes {
    to_read: VecDeque<Vec<u8>>,
    has_ended: bool,
    written: Vec<u8>,
}

impl MemoryStream {
    pub(crate) fn push(&self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.0.borrow_mut().to_read.push_back(bytes);
        }
    }

    pub(crate) fn end(&self) {
        self.0.borrow_mut().has_ended = true;
    }

    /// The number of pieces that were not read yet.
    pub(crate) fn pieces(&self) -> usize {
        self.0.borrow().to_read.len()
    }

    fn take_written(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.borrow_mut().written)
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut bytes = self.0.borrow_mut();
        let Some(piece) = bytes.to_read.front_mut() else {
            return if bytes.has_ended { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        let count = piece.len().min(out.remaining());
        out.put_slice(&piece[..count]);
        piece.drain(..count);
        if piece.is_empty() {
            bytes.to_read.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().written.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Both sides have the identity of the same service.
fn configs() -> &'static (Arc<ClientConfig>, Arc<ServerConfig>) {
    static CONFIGS: OnceLock<(Arc<ClientConfig>, Arc<ServerConfig>)> = OnceLock::new();
    CONFIGS.get_or_init(|| {
        tls::install_crypto_provider();
        let key = KeyPair::generate().expect("a key");
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = root.self_signed(&key).expect("a root");
        let bundle = TrustBundle::from_der([certificate.der().to_vec()]).expect("a bundle");
        let issuer = Issuer::from_params(&root, key);
        let key = KeyPair::generate().expect("a key");
        let mut leaf = CertificateParams::default();
        leaf.subject_alt_names = vec![SanType::URI(ID.try_into().expect("ASCII"))];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let leaf = leaf.signed_by(&key, &issuer).expect("it is signed");
        let svid = Svid::new(vec![leaf.der().to_vec()], key.serialize_der()).expect("an SVID");
        let client = tls::client_config(Some(&svid), &bundle, ID.parse().expect("a SPIFFE ID"));
        let server = tls::server_config(&svid, &bundle, ClientCertificate::Required);
        (client.expect("a client"), server.expect("a server"))
    })
}

const ID: &str = "spiffe://weft.local/ns/shop/sa/peer";

/// Moves what one side has to send to the other.
fn carry<S: SideData, T: SideData>(from: &mut ConnectionCommon<S>, to: &mut ConnectionCommon<T>) {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).expect("memory takes it");
    }
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let count = to.read_tls(&mut rest).expect("there is room");
        assert!(count > 0, "no side ends during the handshake");
        to.process_new_packets().expect("both keep the rules");
    }
}

/// Both ends of a connection, after their handshake.
pub(crate) fn handshake() -> (ClientConnection, ServerConnection) {
    let (client, server) = configs();
    let name = tls::server_name(&ID.parse().expect("a SPIFFE ID"));
    let mut client = ClientConnection::new(Arc::clone(client), name).expect("a client");
    let mut server = ServerConnection::new(Arc::clone(server)).expect("a server");
    // Hello, certificates, end: each takes one round.
    for _ in 0..4 {
        carry(&mut client, &mut server);
        carry(&mut server, &mut client);
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    (client, server)
}

/// Reads from a peer that does what `script` says. The stream must return what was sent and nothing else, distinguish a
/// clean end from a truncated one, and never spin.
pub fn stream(script: &[u8]) {
    let (client, server) = handshake();
    if script.first().is_some_and(|kind| kind & 1 == 0) {
        Play::new(server, client).run(script);
    } else {
        Play::new(client, server).run(script);
    }
}

struct Play<C, P> {
    stream: TlsStream<C, MemoryStream>,
    pipe: MemoryStream,
    peer: P,
    /// Bytes that the peer has produced and not sent yet.
    outgoing: Vec<u8>,
    /// All plaintext that the peer has produced up to its close_notify.
    said: Vec<u8>,
    heard: Vec<u8>,
    has_closed: bool,
    /// Bytes that are not valid TLS were sent before the close_notify.
    is_broken: bool,
    /// How the stream has ended.
    end: Option<io::Result<()>>,
    key_updates: usize,
}

/// More key updates without plaintext between them are an error in rustls.
const KEY_UPDATES: usize = 16;
/// How many turns may bring nothing: records may hold no plaintext.
const TURNS_WITHOUT_PROGRESS: usize = 2;

impl<C, P, S, T> Play<C, P>
where
    C: DerefMut<Target = ConnectionCommon<S>> + Unpin,
    P: DerefMut<Target = ConnectionCommon<T>>,
    S: SideData,
    T: SideData,
{
    fn new(session: C, peer: P) -> Self {
        let pipe = MemoryStream::default();
        Self {
            stream: TlsStream::new(pipe.clone(), session),
            pipe,
            peer,
            outgoing: Vec::new(),
            said: Vec::new(),
            heard: Vec::new(),
            has_closed: false,
            is_broken: false,
            end: None,
            key_updates: 0,
        }
    }

    fn run(mut self, script: &[u8]) {
        for step in script.get(1..).unwrap_or_default().chunks(3) {
            let byte = |at: usize| usize::from(step.get(at).copied().unwrap_or_default());
            self.step(step[0] % 12, byte(1), byte(2));
        }
        self.send(usize::MAX);
        self.pipe.end();
        self.read();
        // The last turn may have given way with only the end left to read.
        self.read();
        assert!(self.end.is_some(), "it ends with its connection");
        assert!(self.said.starts_with(&self.heard), "only what was sent is received");
        if !self.is_broken {
            assert_eq!(self.heard.len(), self.said.len(), "all that was sent is received");
            assert_eq!(self.end.is_some_and(|end| end.is_ok()), self.has_closed, "only a close_notify is a clean end");
        }
    }

    fn step(&mut self, what: u8, which: usize, size: usize) {
        match what {
            0..3 => self.say((which % 16 * 4096) + size),
            3 => self.close(),
            4 => self.garbage(&vec![which as u8; (size + 1) * 64]),
            // Bytes that start like a record.
            5 => self.garbage(&[20 + (which % 5) as u8, 3, 3, (which >> 6) as u8, size as u8]),
            6 if self.key_updates < KEY_UPDATES && !self.has_closed => {
                self.key_updates += 1;
                let _ = self.peer.refresh_traffic_keys();
                self.flush();
            }
            7 if !self.outgoing.is_empty() => {
                let at = (which << 8 | size) % self.outgoing.len();
                self.outgoing[at] ^= 1 << (which % 8);
                self.is_broken = true;
            }
            8 if !self.outgoing.is_empty() => {
                self.outgoing.truncate(self.outgoing.len().saturating_sub(size + 1));
                self.is_broken = true;
            }
            9 => self.send(if which & 1 == 0 { usize::MAX } else { size + 1 }),
            10 => self.read(),
            11 => self.answer(size),
            _ => {}
        }
    }

    /// Moves what the peer's session has to send into `outgoing`.
    fn flush(&mut self) {
        while self.peer.wants_write() {
            self.peer.write_tls(&mut self.outgoing).expect("memory takes it");
        }
    }

    fn say(&mut self, bytes: usize) {
        if self.has_closed {
            return;
        }
        let text: Vec<u8> = (0..bytes).map(|at| (self.said.len() + at) as u8).collect();
        for part in text.chunks(16 * 1024) {
            let _ = self.peer.writer().write_all(part);
            self.flush();
        }
        self.said.extend_from_slice(&text);
    }

    fn close(&mut self) {
        if !self.has_closed {
            self.peer.send_close_notify();
            self.flush();
            self.has_closed = true;
        }
    }

    /// Adds bytes that are not TLS. After the close_notify they must not matter.
    fn garbage(&mut self, bytes: &[u8]) {
        self.outgoing.extend_from_slice(bytes);
        self.is_broken |= !self.has_closed;
    }

    fn send(&mut self, piece: usize) {
        let outgoing = std::mem::take(&mut self.outgoing);
        outgoing.chunks(piece.max(outgoing.len() / 64 + 1)).for_each(|piece| self.pipe.push(piece.to_vec()));
    }

    /// Reads until there is nothing more. Checks that turns make progress.
    fn read(&mut self) {
        let mut buffer = vec![0; 40 * 1024];
        let mut idle = 0;
        while self.end.is_none() {
            let (pieces, before) = (self.pipe.pieces(), self.heard.len());
            let mut out = ReadBuf::new(&mut buffer);
            let turn = Pin::new(&mut self.stream).poll_read(&mut Context::from_waker(Waker::noop()), &mut out);
            self.heard.extend_from_slice(out.filled());
            match turn {
                Poll::Pending if self.pipe.pieces() == 0 => return,
                Poll::Pending => {}
                Poll::Ready(Ok(())) if out.filled().is_empty() => self.end = Some(Ok(())),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(e)) => self.end = Some(Err(e)),
            }
            let is_idle = self.heard.len() == before && self.pipe.pieces() == pieces && self.end.is_none();
            idle = if is_idle { idle + 1 } else { 0 };
            assert!(idle < TURNS_WITHOUT_PROGRESS, "a turn makes progress or the stream ends");
        }
    }

    /// Sends something over the stream, which its peer must receive whatever else it does.
    fn answer(&mut self, bytes: usize) {
        let text = vec![b'a'; bytes + 1];
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Ok(taken)) = Pin::new(&mut self.stream).poll_write(&mut cx, &text) else { return };
        let written = self.pipe.take_written();
        let mut rest = &written[..];
        let mut heard = Vec::new();
        while !rest.is_empty() {
            if self.peer.read_tls(&mut rest).is_ok_and(|count| count == 0) || self.peer.process_new_packets().is_err() {
                return;
            }
            let mut part = vec![0; 4096];
            while let Ok(count @ 1..) = self.peer.reader().read(&mut part) {
                heard.extend_from_slice(&part[..count]);
            }
        }
        // If broken bytes were sent, an alert may have come instead.
        assert!(self.is_broken || heard == text[..taken], "the peer receives what is sent");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A case that the fuzzer found.
    #[test]
    fn a_turn_that_gives_way_before_the_end_is_followed_by_another() {
        stream(b"\x01\x05\x02\x25\x03\x00\xe8\x00\x04\x40\x00\x15\x63\x09\x03\x03\x09\xa3\x00\x00\x00");
    }

    #[test]
    fn a_stream_makes_progress_or_ends_whatever_its_peer_sends() {
        let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(300);
        for seed in 0..seeds {
            let mut random = fastrand::Rng::with_seed(seed);
            let script: Vec<u8> = (0..random.usize(..90)).map(|_| random.u8(..)).collect();
            let played = std::panic::catch_unwind(|| stream(&script));
            assert!(played.is_ok(), "seed {seed}");
        }
    }
}
