//! The reader of the log hangs: the mesh goes on, and ends when it is told to.

use std::{fs::OpenOptions, time::Duration};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use weft_tests::{Bed, eventually, get, is_alive, metric, probe, probe_service, signal};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_log_that_nobody_reads_holds_up_no_call() {
    let db = "  db:\n    run: ${BIN}/weft-test-app\n    protocol: tcp\n    env: { SPEAK: tcp }\n";
    let mut bed = Bed::start_in(&format!("{db}{}", probe_service(1)), &[], &[("RUST_LOG", "debug")]).await;
    probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    let (sidecar, ports) = (bed.pid("keyboard·sidecar"), bed.ports("keyboard"));
    // `weft up` reads the log of each process.
    signal("-STOP", bed.up_pid());

    eventually("the log's pipe is full", LIMIT, async || {
        for _ in 0..50 {
            reset(&bed).await;
        }
        is_full(sidecar)
    })
    .await;
    for _ in 0..20 {
        let answer = timeout(LIMIT, probe(&bed.channel(), "Say", &[])).await;
        answer.expect("a call does not wait for the log").expect("an answer");
        reset(&bed).await;
    }
    let lost = async || metric(ports.metrics, "weft_log_lines_lost_total", "").await;
    let _pinging = ping(ports.admin).await;
    eventually("lines are lost", LIMIT, async || lost().await > 0.0).await;
    let answer = timeout(LIMIT, probe(&bed.channel(), "Say", &[])).await;
    answer.expect("a call does not wait for the log").expect("an answer");
    assert!(is_full(sidecar), "the pipe is still full");
    assert_eq!(get(ports.metrics, "/readyz").await.0, 200, "the sidecar is still ready");

    signal("-CONT", bed.up_pid());
    eventually("the log says it", LIMIT, async || bed.log().contains("log lines were lost as nobody read them")).await;

    // The sidecar's end does not wait for the log, either.
    signal("-STOP", bed.up_pid());
    let so_far = lost().await;
    let _pinging = ping(ports.admin).await;
    eventually("lines are lost again", LIMIT, async || lost().await > so_far).await;
    signal("-TERM", sidecar);
    eventually("the sidecar ends", LIMIT, async || !is_alive(sidecar)).await;
    signal("-CONT", bed.up_pid());
    bed.stop().await;
    let is_last = |line: &str| line.starts_with("probe-1·sidecar") && line.contains("has stopped");
    assert!(bed.log().lines().any(is_last), "the last line is not lost");
}

/// Whether the pipe to which a process writes its log is full.
fn is_full(pid: u32) -> bool {
    // Opens another writing end of the pipe, to poll it.
    let pipe = OpenOptions::new().write(true).open(format!("/proc/{pid}/fd/2")).expect("a pipe of a child");
    let mut asked = [PollFd::new(&pipe, PollFlags::OUT)];
    poll(&mut asked, Some(&Timespec::default())).expect("a pipe can be asked") == 0
}

/// Sends 10,000 PINGs to the admin port, over HTTP/2. The sidecar logs two lines for each.
async fn ping(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
    let start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let ping = b"\0\0\x08\x06\0\0\0\0\0weftweft";
    stream.write_all(&[&start[..], &ping.repeat(10_000)].concat()).await.expect("the bytes are sent");
    stream
}

/// Resets a connection that the sidecar carries. The sidecar logs it.
async fn reset(bed: &Bed) {
    let mut stream = TcpStream::connect(("127.0.0.1", bed.forward("db"))).await.expect("the forward listens");
    let greeting = timeout(LIMIT, stream.read_u8()).await.expect("a connection does not wait for the log");
    greeting.expect("it is there");
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket");
}
