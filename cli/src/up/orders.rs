//! Orders from another terminal to restart parts of the running mesh, one after the other, so that no call is lost.
//! `weft restart` connects to a socket beside the run file, sends one line, and gets back a line for each step.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{launch::Replica, ports::loopback, ready};

/// The name of the socket in the state folder.
const NAME: &str = "orders";
/// A request is a word and a name.
const REQUEST_BYTES: usize = 256;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a replica may take to be ready again.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// The pause after a replica is ready, before the next one stops: callers must have learned of it.
const SETTLING: Duration = Duration::from_millis(500);

/// An order to restart a process.
pub(crate) struct Order {
    /// The new process starts while the old one runs, and takes over from it.
    pub(crate) is_in_place: bool,
    /// Gets `Ok` when the old process has ended, or the reason why the new one did not start.
    pub(crate) done: oneshot::Sender<Result<(), String>>,
    /// If the old process ends first: completes when the new one may start.
    pub(crate) resume: oneshot::Receiver<()>,
}

/// A channel to each supervisor, by the name of the process that it keeps running.
#[derive(Clone, Default)]
pub(crate) struct Orders(Arc<Mutex<HashMap<String, mpsc::Sender<Order>>>>);

impl Orders {
    /// The supervisor's end of its channel.
    pub(crate) fn of(&self, name: &str) -> mpsc::Receiver<Order> {
        let (sender, receiver) = mpsc::channel(1);
        self.0.lock().unwrap_or_else(|e| e.into_inner()).insert(name.to_owned(), sender);
        receiver
    }

    /// Gives an order and waits until the old process has ended. While the returned sender is not dropped, a process
    /// that was not replaced in place is not started again.
    pub(super) async fn give(&self, name: &str, is_in_place: bool) -> Result<oneshot::Sender<()>, String> {
        let supervisor = self.0.lock().unwrap_or_else(|e| e.into_inner()).get(name).cloned();
        let supervisor = supervisor.ok_or_else(|| format!("weft up runs no process {name}"))?;
        let ((done, is_done), (hold, resume)) = (oneshot::channel(), oneshot::channel());
        let order = Order { is_in_place, done, resume };
        supervisor.try_send(order).map_err(|_| format!("{name} is already being restarted"))?;
        is_done.await.unwrap_or_else(|_| Err(format!("{name} is not running")))?;
        Ok(hold)
    }
}

/// The socket where orders arrive.
pub(crate) struct OrderListener {
    /// None if the state folder's path is too long for a socket.
    listener: Option<UnixListener>,
    orders: Orders,
    replicas: Vec<Arc<Replica>>,
}

/// What is to be restarted.
enum What {
    /// Each replica of a service, with its sidecar.
    Service(String),
    /// Only the sidecars, in place.
    Sidecars(String),
}

impl OrderListener {
    pub(crate) fn open(state_dir: &Path, orders: Orders, replicas: Vec<Arc<Replica>>) -> anyhow::Result<Self> {
        let path = path_in(state_dir);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).context(path.display().to_string()),
            _ => {}
        }
        let listener = match UnixListener::bind(&path) {
            // The name is too long for a socket.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => None,
            bound => Some(bound.with_context(|| path.display().to_string())?),
        };
        Ok(Self { listener, orders, replicas })
    }

    /// Carries out one order after the other, for as long as it is polled.
    pub(crate) async fn serve(&self) {
        let Some(listener) = &self.listener else { return std::future::pending().await };
        loop {
            match listener.accept().await {
                // An error means that the client has gone: nobody is left to answer.
                Ok((stream, _)) => drop(self.take(stream).await),
                Err(_) => sleep(REQUEST_TIMEOUT).await,
            }
        }
    }

    async fn take(&self, stream: UnixStream) -> io::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut line = String::new();
        let mut read = BufReader::new(tokio::io::AsyncReadExt::take(read, REQUEST_BYTES as u64));
        timeout(REQUEST_TIMEOUT, read.read_line(&mut line)).await??;
        let what = match line.trim_end().split_once(' ') {
            Some(("service", name)) => What::Service(name.to_owned()),
            Some(("sidecars", name)) => What::Sidecars(name.to_owned()),
            _ => {
                return write.write_all(b"error the order is not understood: is this another version of weft?\n").await;
            }
        };
        let (steps, mut told) = mpsc::channel(4);
        let doing = async {
            let result = self.restart(&what, &steps).await;
            drop(steps);
            result
        };
        let telling = async {
            while let Some(step) = told.recv().await {
                write.write_all(format!("step {step}\n").as_bytes()).await?;
            }
            Ok::<_, io::Error>(())
        };
        // The restart goes on to its end, whether the client is still there or not.
        let (result, _) = tokio::join!(doing, telling);
        let last = result.map_or_else(|why| format!("error {why}\n"), |()| "done\n".to_owned());
        write.write_all(last.as_bytes()).await
    }

    async fn restart(&self, what: &What, steps: &mpsc::Sender<String>) -> Result<(), String> {
        let (What::Service(name) | What::Sidecars(name)) = what;
        let of_name = |replica: &&Arc<Replica>| {
            replica.name == *name || replica.service.as_ref().is_some_and(|service| service.name.name() == name)
        };
        let chosen: Vec<_> = self.replicas.iter().filter(of_name).collect();
        if chosen.is_empty() {
            let names = self.replicas.iter().map(|replica| replica.name.as_str());
            let names: Vec<&str> = names.collect();
            return Err(format!("there is no `{name}`; allowed: a service, or one of {}", names.join(", ")));
        }
        let count = chosen.len();
        for (place, replica) in chosen.into_iter().enumerate() {
            match what {
                What::Service(_) if replica.service.is_none() => {
                    return Err(format!("{name} is only a sidecar: use --sidecar"));
                }
                What::Service(_) => {
                    let sidecar = replica.sidecar_name();
                    let (sidecar, app) =
                        tokio::join!(self.orders.give(&sidecar, false), self.orders.give(&replica.name, false));
                    // Both have ended before a new one starts, so that the old sidecar sees its service go.
                    drop((sidecar?, app?));
                }
                What::Sidecars(_) => drop(self.orders.give(&replica.sidecar_name(), true).await?),
            }
            ready::wait(|| loopback(replica.ports.borrow().metrics), READY_LIMIT).await?;
            if place + 1 < count {
                sleep(SETTLING).await;
            }
            // If the client has gone, that is no reason to stop half-way.
            let _ = steps.send(format!("{} is ready again", replica.name)).await;
        }
        Ok(())
    }
}

/// The socket of the mesh whose state is in this folder.
pub(crate) fn path_in(state_dir: &Path) -> PathBuf {
    state_dir.join(NAME)
}
