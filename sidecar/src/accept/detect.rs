//! What a client speaks, told by its first bytes.

use std::{io, time::Duration};

use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

/// What the outbound port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Http1,
    Http2,
}

/// Why a connection is closed before its first request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undetected {
    #[error("it went without a word")]
    Gone,
    #[error("it said nothing for {0:?}")]
    Silent(Duration),
    #[error("its first bytes are neither HTTP/2 nor HTTP/1.1: {0:?}")]
    Garbage(String),
    #[error("it broke: {0}")]
    Io(#[from] io::Error),
}

/// As much of the HTTP/2 preface (RFC 9113, section 3.4) as no method of HTTP/1.1 begins with.
const PREFACE: &[u8; 4] = b"PRI ";

/// The first pause before a client's bytes are looked at again, which doubles up to the last: as many connections as a
/// worker takes may stop after their first bytes, and must not keep it busy.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Looks at a connection's first bytes, which must come within `limit`, without taking them.
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
            // The socket stays readable, so it can't say when there is more. Only a client that sends its first
            // three bytes one by one comes here.
            sleep(pause).await;
            pause = LAST_PAUSE.min(pause * 2);
        }
    })
    .await
    .unwrap_or(Err(Undetected::Silent(limit)))
}

/// `None`: too little to say.
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
    fn the_first_bytes_tell() {
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
