//! What the running mesh is told from another terminal: to start parts of it again, one after the other, so that no call
//! is lost. `weft restart` speaks to it over a socket beside the run file, a line each way for each step.

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
/// For a replica to be ready again.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// After a replica is ready, before the next one goes: what calls it has to have heard of it.
const SETTLING: Duration = Duration::from_millis(500);

/// A process is to be started again.
pub(crate) struct Order {
    /// The new one begins while the old one runs, and takes its place.
    pub(crate) is_in_place: bool,
    /// Told when the old one has ended, or why the new one did not begin.
    pub(crate) done: oneshot::Sender<Result<(), String>>,
    /// Ready when another may begin, where the old one has ended before.
    pub(crate) resume: oneshot::Receiver<()>,
}

/// The ways to all supervisors, by the names of what they keep running.
#[derive(Clone, Default)]
pub(crate) struct Orders(Arc<Mutex<HashMap<String, mpsc::Sender<Order>>>>);

impl Orders {
    /// The supervisor's end.
    pub(crate) fn of(&self, name: &str) -> mpsc::Receiver<Order> {
        let (sender, receiver) = mpsc::channel(1);
        self.0.lock().unwrap_or_else(|e| e.into_inner()).insert(name.to_owned(), sender);
        receiver
    }

    /// Until what is given back is dropped, nothing takes the place of one that has ended.
    async fn give(&self, name: &str, is_in_place: bool) -> Result<oneshot::Sender<()>, String> {
        let supervisor = self.0.lock().unwrap_or_else(|e| e.into_inner()).get(name).cloned();
        let supervisor = supervisor.ok_or_else(|| format!("nothing of the name {name} is kept running"))?;
        let ((done, is_done), (hold, resume)) = (oneshot::channel(), oneshot::channel());
        let order = Order { is_in_place, done, resume };
        supervisor.try_send(order).map_err(|_| format!("{name} is being started again already"))?;
        is_done.await.unwrap_or_else(|_| Err(format!("{name} does not run")))?;
        Ok(hold)
    }
}

/// Where orders are taken.
pub(crate) struct Counter {
    /// None where the state folder's path is too long for a socket.
    listener: Option<UnixListener>,
    orders: Orders,
    replicas: Vec<Arc<Replica>>,
}

/// What is to be started again.
enum What {
    /// Each replica of a service, with its sidecar.
    Service(String),
    /// The sidecars alone, in place.
    Sidecars(String),
}

impl Counter {
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

    /// Takes one order after the other, for as long as it is polled.
    pub(crate) async fn serve(&self) {
        let Some(listener) = &self.listener else { return std::future::pending().await };
        loop {
            match listener.accept().await {
                // Whoever goes away while it is done is not told.
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
            _ => return write.write_all(b"error it is not understood here: another version of weft?\n").await,
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
        // What has begun is done, whether anybody listens or not.
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
                    return Err(format!("{name} is a sidecar alone: give --sidecar"));
                }
                What::Service(_) => {
                    let sidecar = replica.sidecar_name();
                    let (sidecar, app) =
                        tokio::join!(self.orders.give(&sidecar, false), self.orders.give(&replica.name, false));
                    // The old sidecar sees that its service has gone before there is a new one.
                    drop((sidecar?, app?));
                }
                What::Sidecars(_) => drop(self.orders.give(&replica.sidecar_name(), true).await?),
            }
            ready::wait(|| loopback(replica.ports.borrow().metrics), READY_LIMIT).await?;
            if place + 1 < count {
                sleep(SETTLING).await;
            }
            // Nobody listens any more, which is no reason to stop half-way.
            let _ = steps.send(format!("{} is ready again", replica.name)).await;
        }
        Ok(())
    }
}

/// The socket of the mesh whose state is in this folder.
pub(crate) fn path_in(state_dir: &Path) -> PathBuf {
    state_dir.join(NAME)
}
