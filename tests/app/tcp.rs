//! A protocol that is not HTTP: the server speaks first, then does what the client's first line says.
//!
//! - `echo` sends back what comes until the client has ended its side, and then the number of bytes;
//! - `deaf` ends its own side at once, counts the bytes that come until the end, and writes the number into the file
//!   that the line names;
//! - `idle` sends nothing more and reads nothing more, and so does `hog`;
//! - `reset` resets the connection.

use std::{fs, future::pending, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

pub(crate) async fn serve(mut stream: TcpStream) -> anyhow::Result<()> {
    stream.write_all(b"220 ready\r\n").await?;
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    let mut line = String::new();
    read.read_line(&mut line).await?;
    match line.trim_end().split_once(' ').unwrap_or((line.trim_end(), "")) {
        ("echo", _) => {
            let count = tokio::io::copy(&mut read, &mut write).await?;
            write.write_all(format!("{count} bytes\r\n").as_bytes()).await?;
        }
        ("deaf", file) => {
            write.shutdown().await?;
            let mut rest = Vec::new();
            read.read_to_end(&mut rest).await?;
            fs::write(file, rest.len().to_string())?;
        }
        ("reset", _) => socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?,
        ("hog" | "idle", _) => pending().await,
        _ => {}
    }
    Ok(())
}
