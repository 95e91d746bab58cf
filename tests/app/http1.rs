//! HTTP/1.1 on the bare socket, so that no library is lenient: a plain request is echoed byte for byte. These paths do
//! something else:
//!
//! - `/early` answers before the body has come, and closes; `/refuse` also answers at once, with 403, but reads the
//!   body;
//! - `/later` waits for 300 ms;
//! - `/gather/N` answers once N requests for it are there;
//! - `/phrase` answers with an unusual reason phrase, `/lie` with one in the mesh's own header for it;
//! - `/fields` answers with 1,000 fields, `/long` with one of 150 KiB;
//! - `/hints` sends 103 before its answer, `/hints-without-end` sends it 10,000 times;
//! - `/continue` sends 100 first, if the client waits for it;
//! - `/decoded` echoes the body without its chunks' frames;
//! - `/mirror` sends the body back while it comes;
//! - `/events` sends 20 events, each when `/next` is asked for;
//! - `/empty` answers 204, `/unchanged` 304 with a length;
//! - `/to-the-end` has a body that lasts until the connection ends, `/cut` one that is cut off;
//! - `/chunks` has trailers;
//! - `/upgrade` switches to the protocol that is asked for, and then echoes; `/stay` ignores the upgrade and answers
//!   200;
//! - CONNECT is answered with 200 and a welcome, and then echoes; for the host `refused` with 407 and a body.
//!
//! With the header `x-answer: NAME: VALUE` a request without a body is answered with that header.
//!
//! With `ONE_AT_A_TIME` the backlog is 1. It serves one connection after the other, with one request on each.

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use anyhow::Context;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::sleep,
};

/// Events that `/events` may send.
static EVENTS: Semaphore = Semaphore::const_new(0);

/// Answers one request on each connection, one connection after the other.
pub(crate) async fn serve_one_at_a_time(listener: TcpListener) -> anyhow::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        // A health check of TCP connects and sends nothing.
        if let Some(head) = read_head(&mut stream, &mut Vec::new()).await? {
            sleep(Duration::from_millis(2)).await;
            let answer =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{head}", head.len());
            // The client may have gone.
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    }
}

pub(crate) async fn serve(mut stream: TcpStream) -> anyhow::Result<()> {
    let mut seen = Vec::new();
    while let Some(head) = read_head(&mut stream, &mut seen).await? {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        if head.starts_with("CONNECT ") && !path.starts_with("refused:") {
            return connect(&mut stream, &seen).await;
        }
        if let Some(field) = head.lines().find_map(|line| line.strip_prefix("x-answer: ")) {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{}\r\n\r\nok", field.trim_end());
            stream.write_all(answer.as_bytes()).await?;
            continue;
        }
        match path.as_str() {
            "/early" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nearly").await?;
                return Ok(());
            }
            "/refuse" => {
                stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").await?;
                read_body(&mut stream, &mut seen, &head).await?;
                continue;
            }
            "/later" => sleep(Duration::from_millis(300)).await,
            "/upgrade" => return upgrade(&mut stream, &head, &seen).await,
            "/mirror" => mirror(&mut stream, &mut seen, &head).await?,
            "/events" => events(&mut stream).await?,
            "/next" => EVENTS.add_permits(1),
            "/to-the-end" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nall of it").await?;
                return Ok(());
            }
            "/cut" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of").await?;
                return Ok(());
            }
            "/continue" if has(&head, "expect: 100-continue") => {
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            }
            "/hints-without-end" => {
                stream.write_all(&b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n".repeat(10_000)).await?;
            }
            "/hints" => stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n").await?,
            path => {
                if let Some(count) = path.strip_prefix("/gather/") {
                    gather(count.parse()?).await;
                }
            }
        }
        if matches!(path.as_str(), "/mirror" | "/events") {
            continue;
        }
        let mut body = read_body(&mut stream, &mut seen, &head).await?;
        if path == "/decoded" && has(&head, "transfer-encoding: chunked") {
            body = decoded(&body)?;
        }
        stream.write_all(&answer(&path, &head, &body)).await?;
        if has(&head, "connection: close") {
            return Ok(());
        }
    }
    Ok(())
}

fn answer(path: &str, head: &str, body: &[u8]) -> Vec<u8> {
    match path {
        "/empty" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        "/unchanged" => b"HTTP/1.1 304 Not Modified\r\ncontent-length: 77\r\netag: \"x\"\r\n\r\n".to_vec(),
        "/phrase" => b"HTTP/1.1 299 All Is Fine\r\ncontent-length: 0\r\n\r\n".to_vec(),
        "/lie" => b"HTTP/1.1 200 OK\r\nx-weft-reason: Lie\r\ncontent-length: 0\r\n\r\n".to_vec(),
        "/fields" => {
            let fields: String = (0..1_000).map(|number| format!("x-{number}: a\r\n")).collect();
            format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n").into_bytes()
        }
        "/long" => {
            let long = "x".repeat(150 * 1024);
            format!("HTTP/1.1 200 OK\r\nx-long: {long}\r\ncontent-length: 0\r\n\r\n").into_bytes()
        }
        _ if head.starts_with("CONNECT ") => {
            b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 9\r\n\r\nnot to it".to_vec()
        }
        "/chunks" => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n3\r\nabc\r\n2;why=so\r\nde\r\n0\r\nx-sum: 5\r\n\r\n".to_vec(),
        _ => {
            let echo = [head.as_bytes(), body].concat();
            let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", echo.len()).into_bytes();
            if !head.starts_with("HEAD ") {
                answer.extend(echo);
            }
            answer
        }
    }
}

async fn upgrade(stream: &mut TcpStream, head: &str, seen: &[u8]) -> anyhow::Result<()> {
    let protocol = head.lines().find_map(|line| line.strip_prefix("upgrade: ")).unwrap_or_default();
    let answer = format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n");
    stream.write_all(answer.as_bytes()).await?;
    stream.write_all(seen).await?;
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.write_all(b"goodbye").await?;
    Ok(())
}

async fn connect(stream: &mut TcpStream, seen: &[u8]) -> anyhow::Result<()> {
    stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\nwelcome ").await?;
    stream.write_all(seen).await?;
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.write_all(b"goodbye").await?;
    Ok(())
}

/// Waits until `count` requests wait here.
async fn gather(count: usize) {
    static WAITING: AtomicUsize = AtomicUsize::new(0);
    let number = WAITING.fetch_add(1, SeqCst);
    let all = (number / count + 1) * count;
    while WAITING.load(SeqCst) < all {
        sleep(Duration::from_millis(1)).await;
    }
}

async fn mirror(stream: &mut TcpStream, seen: &mut Vec<u8>, head: &str) -> anyhow::Result<()> {
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut left: usize = length.context("/mirror needs a content-length")?;
    stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {left}\r\n\r\n").as_bytes()).await?;
    seen.reserve(64 * 1024);
    while left > 0 {
        if seen.is_empty() && stream.read_buf(seen).await? == 0 {
            anyhow::bail!("the request was cut off");
        }
        left -= seen.len();
        stream.write_all(seen).await?;
        seen.clear();
    }
    Ok(())
}

async fn events(stream: &mut TcpStream) -> anyhow::Result<()> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    for number in 1..=20 {
        EVENTS.acquire().await?.forget();
        let event = format!("data: {number}\n\n");
        stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
    }
    stream.write_all(b"0\r\n\r\n").await?;
    Ok(())
}

fn has(head: &str, line: &str) -> bool {
    head.lines().any(|other| other.eq_ignore_ascii_case(line))
}

/// A head, with the empty line at its end; `None` at the connection's end.
async fn read_head(stream: &mut TcpStream, seen: &mut Vec<u8>) -> anyhow::Result<Option<String>> {
    loop {
        if let Some(end) = seen.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let rest = seen.split_off(end + 4);
            let head = std::mem::replace(seen, rest);
            return Ok(Some(String::from_utf8(head)?));
        }
        if stream.read_buf(seen).await? == 0 {
            return Ok(None);
        }
    }
}

/// The content of well-formed chunks.
fn decoded(mut chunks: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(end) = chunks.windows(2).position(|bytes| bytes == b"\r\n") {
        let size = usize::from_str_radix(str::from_utf8(&chunks[..end])?, 16)?;
        if size == 0 {
            break;
        }
        body.extend_from_slice(&chunks[end + 2..][..size]);
        chunks = &chunks[end + 2 + size + 2..];
    }
    Ok(body)
}

/// The body as it came, chunk headers included.
async fn read_body(stream: &mut TcpStream, seen: &mut Vec<u8>, head: &str) -> anyhow::Result<Vec<u8>> {
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let is_whole = |seen: &[u8]| match length {
        Some(length) => seen.len() >= length,
        None if has(head, "transfer-encoding: chunked") => seen.ends_with(b"0\r\n\r\n"),
        None => true,
    };
    while !is_whole(seen) {
        if stream.read_buf(seen).await? == 0 {
            anyhow::bail!("the request was cut off");
        }
    }
    let rest = seen.split_off(length.unwrap_or(seen.len()));
    Ok(std::mem::replace(seen, rest))
}
