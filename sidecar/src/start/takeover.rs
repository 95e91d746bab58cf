//! One sidecar replaces another on the same ports, and no connection is refused in between: the listening sockets
//! themselves are handed over, with the connections that wait in them.
//!
//! The running sidecar listens on a Unix socket (`--takeover`). A new sidecar with the same flag gets the listening
//! sockets ([`Predecessor::find`]), gets an identity, announces its service and reports that it is ready. Only then
//! does the old one stop accepting; it lets running calls end, and stops. If the new one fails earlier, the old one
//! goes on as before.

use std::{
    fs, io,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixStream as StdUnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    time::timeout,
};

/// The first bytes on the Unix socket, with the version of this protocol.
const GREETING: &[u8; 12] = b"weft-ports/1";
const READY: &[u8; 5] = b"ready";
/// The most file descriptors that the kernel passes at once (SCM_MAX_FD).
const MOST_SOCKETS: usize = 253;
/// The time limit of each step, except for the start of the new sidecar.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);

/// The sidecar that this one replaces.
pub(super) struct Predecessor {
    stream: StdUnixStream,
    sockets: Vec<TcpListener>,
}

impl Predecessor {
    /// Connects to the sidecar that runs now, if there is one, and takes its sockets.
    ///
    /// # Errors
    /// A process listens there, but hands over no sockets.
    pub(super) fn find(path: &Path) -> anyhow::Result<Option<Self>> {
        let stream = match StdUnixStream::connect(path) {
            Ok(stream) => stream,
            // There was no sidecar, or it has died.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(e) => return Err(e).with_context(|| format!("--takeover {}", path.display())),
        };
        stream.set_read_timeout(Some(STEP_TIMEOUT))?;
        let sockets = receive(&stream).with_context(|| {
            format!("--takeover {}: the sidecar there does not hand over its ports", path.display())
        })?;
        Ok(Some(Self { stream, sockets }))
    }

    /// Takes the `count` sockets that listen on an address: one for each worker of the old sidecar.
    ///
    /// # Errors
    /// The port is 0, or the old sidecar listens elsewhere or has another number of workers.
    pub(super) fn take(&mut self, flag: &str, address: SocketAddr, count: usize) -> anyhow::Result<Vec<TcpListener>> {
        ensure!(address.port() != 0, "{flag} {address}: port 0 can't be taken over; give a port");
        let is_there = |socket: &mut TcpListener| socket.local_addr().is_ok_and(|local| local == address);
        let found: Vec<TcpListener> = self.sockets.extract_if(.., is_there).collect();
        ensure!(
            found.len() == count,
            "{flag} {address}: the running sidecar has {} sockets there, not {count}; stop it first, or give this one \
             the same addresses and --workers",
            found.len()
        );
        Ok(found)
    }

    /// Tells the old sidecar that it is replaced. If that has already gone, nothing is lost.
    pub(super) fn replaced(mut self) {
        use std::io::Write;
        let _ = self.stream.write_all(READY);
    }
}

fn receive(stream: &StdUnixStream) -> anyhow::Result<Vec<TcpListener>> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut greeting = [0; GREETING.len()];
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut greeting)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    ensure!(received.bytes == GREETING.len() && greeting == *GREETING, "it is an incompatible version of Weft");
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors.map(|descriptor: OwnedFd| TcpListener::from(descriptor)));
        }
    }
    Ok(sockets)
}

/// Hands the ports over when another sidecar asks for them.
pub(super) struct Successor {
    listener: UnixListener,
    path: PathBuf,
    /// Duplicated file descriptors of the same sockets.
    sockets: Vec<OwnedFd>,
}

impl Successor {
    /// Listens at a path for a sidecar that takes over these sockets; removes a socket that an earlier sidecar left
    /// there.
    ///
    /// # Errors
    /// The Unix socket can't be made.
    pub(super) fn at(path: &Path, sockets: Vec<OwnedFd>) -> anyhow::Result<Self> {
        let context = || format!("--takeover {}", path.display());
        if sockets.len() > MOST_SOCKETS {
            bail!("--takeover {}: {} sockets are more than can be handed over", path.display(), sockets.len());
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).with_context(context),
            _ => {}
        }
        let listener = UnixListener::bind(path).with_context(context)?;
        // A process that can connect gets our ports, so only this user may connect.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(context)?;
        Ok(Self { listener, path: path.to_owned(), sockets })
    }

    /// Ready when another sidecar has taken over. Dropping the future loses nothing.
    pub(super) async fn replaced(&self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => match self.serve(stream).await {
                    Ok(true) => return,
                    Ok(false) => tracing::warn!("another sidecar started to take over, but ended before it was ready"),
                    Err(e) => tracing::warn!("the ports were not handed over: {e:#}"),
                },
                Err(e) => {
                    tracing::warn!("{}: {e}", self.path.display());
                    tokio::time::sleep(STEP_TIMEOUT).await;
                }
            }
        }
    }

    /// Hands over the sockets. Returns whether the other sidecar has reported that it is ready.
    async fn serve(&self, mut stream: UnixStream) -> anyhow::Result<bool> {
        let peer = stream.peer_cred()?.uid();
        let own = rustix::process::geteuid().as_raw();
        ensure!(peer == own || peer == 0, "user {peer} asked for them, but this sidecar runs as user {own}");
        timeout(STEP_TIMEOUT, stream.writable()).await.context("the other sidecar does not read")??;
        let descriptors: Vec<BorrowedFd<'_>> = self.sockets.iter().map(AsFd::as_fd).collect();
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        ensure!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "there are too many");
        sendmsg(&stream, &[IoSlice::new(GREETING)], &mut control, SendFlags::NOSIGNAL)?;
        tracing::info!("another sidecar starts to take over");
        let mut word = [0; READY.len()];
        // Without a time limit: the other sidecar gets ready, or it ends and this one goes on.
        let is_ready = stream.read_exact(&mut word).await.is_ok() && word == *READY;
        let _ = stream.shutdown().await;
        Ok(is_ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sockets_are_handed_over_with_the_connections_that_wait_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("takeover");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let successor = Successor::at(&path, vec![listener.try_clone().unwrap().into()]).unwrap();
        // It waits in the socket until one of the two accepts it.
        let _waiting = std::net::TcpStream::connect(address).unwrap();

        let taking = std::thread::spawn(move || {
            let mut predecessor = Predecessor::find(&path).unwrap().expect("it is there");
            assert!(predecessor.take("--outbound", "127.0.0.1:1".parse().unwrap(), 1).is_err());
            let taken = predecessor.take("--outbound", address, 1).unwrap();
            drop(taken[0].accept().unwrap());
            predecessor.replaced();
        });
        timeout(Duration::from_secs(10), successor.replaced()).await.expect("it was replaced");
        taking.join().unwrap();
    }

    #[tokio::test]
    async fn a_sidecar_that_dies_before_it_is_ready_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("takeover");
        assert!(Predecessor::find(&path).unwrap().is_none(), "nothing listens there");
        let successor = Successor::at(&path, Vec::new()).unwrap();
        let asking = tokio::task::spawn_blocking(move || drop(Predecessor::find(&path).unwrap().expect("it is there")));
        assert!(timeout(Duration::from_millis(300), successor.replaced()).await.is_err());
        asking.await.unwrap();
    }
}
