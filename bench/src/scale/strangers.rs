//! Silent connections of strangers, which come back when they are closed.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

/// The pause before a stranger tries again, after its connection was closed or refused.
const AGAIN: Duration = Duration::from_secs(1);
/// How long it may take until each has tried once.
const PATIENCE: Duration = Duration::from_secs(60);
/// The addresses that they come from, `127.2.0.X`.
const ADDRESSES: usize = 250;

/// The strangers. Dropping this ends them.
pub(super) struct Strangers {
    _tasks: JoinSet<()>,
    tried: Arc<AtomicUsize>,
    count: usize,
}

impl Strangers {
    pub(super) fn start(to: SocketAddr, count: usize) -> Self {
        let tried = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let tried = Arc::clone(&tried);
            tasks.spawn(async move {
                let mut is_first = true;
                loop {
                    let connected = connect(number, to).await;
                    if std::mem::take(&mut is_first) {
                        tried.fetch_add(1, Relaxed);
                    }
                    if let Ok(mut stream) = connected {
                        // Returns when the connection is closed.
                        let _ = stream.read(&mut [0; 1]).await;
                    }
                    sleep(AGAIN).await;
                }
            });
        }
        Self { _tasks: tasks, tried, count }
    }

    /// Waits until each has tried once.
    pub(super) async fn are_there(&self) -> Result<()> {
        let all = async {
            while self.tried.load(Relaxed) < self.count {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, all).await.context("the strangers can't connect")
    }
}

async fn connect(number: usize, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let last = u8::try_from(1 + number % ADDRESSES).unwrap_or(u8::MAX);
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 2, 0, last), 0)))?;
    socket.connect(to).await
}
