//! TCP connections, and why there is none.
//!
//! The local service may accept connections slowly ([`to_local`]). Linux drops the SYN of a connection if the listener's backlog is full, and the client sends it again only after 1 s.
//! Programs with a backlog of 5, such as Python's `http.server`, are slow to accept for a few milliseconds, not for a
//! second. So an attempt that gets no answer is given up early, and a new socket tries again.

use std::{fmt, io, net::SocketAddr, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use weft_mesh::limits;

/// How long the first attempt waits; each after it waits twice as long, up to the last.
const FIRST_ATTEMPT: Duration = Duration::from_millis(10);
const LAST_ATTEMPT: Duration = Duration::from_millis(100);

/// Connects to the local service. Tries again for as long as `is_wanted` returns true, [`limits::LOCAL_CONNECT_TIME`]
/// at most, but not if the service refuses the connection. Dropping the future gives up the attempt.
///
/// # Errors
/// The service refused the connection, or did not accept it in time.
pub(crate) async fn to_local(address: SocketAddr, is_wanted: impl Fn() -> bool) -> io::Result<TcpStream> {
    let end = Instant::now() + limits::LOCAL_CONNECT_TIME;
    let mut patience = FIRST_ATTEMPT;
    loop {
        match timeout(patience, TcpStream::connect(address)).await {
            Ok(connected) => {
                let stream = connected?;
                // Only tuning: the socket works without it.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(_) if is_wanted() && Instant::now() < end => patience = LAST_ATTEMPT.min(patience * 2),
            Err(_) => {
                let why = format!("not accepted within {:?}", limits::LOCAL_CONNECT_TIME);
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
        }
    }
}

/// Connects to an address within a time limit.
pub(crate) async fn to_address(limit: Duration, address: SocketAddr) -> Result<TcpStream, String> {
    let stream = within(limit, TcpStream::connect(address)).await?;
    // Only tuning: the socket works without it.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Does one step of a connect within a time limit.
pub(crate) async fn within<T, E: fmt::Display>(
    limit: Duration,
    step: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match timeout(limit, step).await {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}

/// Why an attempt has made no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotMade {
    /// The connection was made, but ended before it could be used.
    #[error("the connection ended before HTTP/2 began")]
    Going,
    #[error("{0}")]
    Other(String),
}

impl From<String> for NotMade {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}
