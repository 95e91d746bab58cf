//! Finds out what a client speaks from its first bytes.

use std::{io, time::Duration};

use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

/// A protocol that the outbound port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Http1,
    Http2,
}

/// Why a connection is closed before its first request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undetected {
    #[error("it closed without sending anything")]
    Gone,
    #[error("within {0:?} it sent too little to tell its protocol")]
    Silent(Duration),
    #[error("its first bytes are neither HTTP/2 nor HTTP/1.1: {0:?}")]
    Garbage(String),
    #[error("it broke: {0}")]
    Io(#[from] io::Error),
}

/// The first bytes of the HTTP/2 preface (RFC 9113, section 3.4). No request of HTTP/1.1 begins with them.
const PREFACE: &[u8; 4] = b"PRI ";

/// The first pause before a client's bytes are looked at again. It doubles up to the last one: even if all of a
/// worker's connections stop after their first bytes, they must not keep it busy.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Peeks at a connection's first bytes, which must come within `limit`.
pub(crate) async fn wire(stream: &TcpStream, limit: Duration) -> Result<Wire, Undetected> {
    timeout(limit, async {
        let (mut seen, mut pause) = ([0; PREFACE.len()], FIRST_PAUSE);
        loop {
            let count = stream.peek(&mut seen).await?;
            if count == 0 {
                return Err(Undetected::Gone);
            }
            if let Some(wire) = judge(&seen[..count])? {
                return Ok(wire);
            }
            // The socket stays readable, so it can't tell when more bytes arrive. Only a client whose first packet has
            // fewer than four bytes comes here.
            sleep(pause).await;
            pause = LAST_PAUSE.min(pause * 2);
        }
    })
    .await
    .unwrap_or(Err(Undetected::Silent(limit)))
}

/// `None` if these bytes are too few to tell.
pub(crate) fn judge(seen: &[u8]) -> Result<Option<Wire>, Undetected> {
    if PREFACE.starts_with(seen) {
        return Ok((seen.len() == PREFACE.len()).then_some(Wire::Http2));
    }
    // An empty line before a request is skipped (RFC 9112, section 2.2).
    if b"\r\n".starts_with(&seen[..seen.len().min(2)]) {
        return Ok(Some(Wire::Http1));
    }
    let is_method = seen.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b' ' || *byte == b'-');
    if is_method { Ok(Some(Wire::Http1)) } else { Err(Undetected::Garbage(seen.escape_ascii().to_string())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_the_protocol() {
        for (seen, wire) in [
            ("PRI ", Some(Wire::Http2)),
            ("P", None),
            ("PR", None),
            ("POST", Some(Wire::Http1)),
            ("GET ", Some(Wire::Http1)),
            ("PROP", Some(Wire::Http1)),
            ("\r", Some(Wire::Http1)),
            ("\r\nGE", Some(Wire::Http1)),
        ] {
            assert_eq!(judge(seen.as_bytes()).unwrap(), wire, "{seen}");
        }
        assert!(judge(&[0x16, 3, 1, 2]).is_err(), "TLS");
        assert!(judge(b"get ").is_err());
        assert!(judge(b"\nGET").is_err());
    }
}
