//! h2specd, the part of h2spec that judges clients: a server for each case, on a port of its own, and a page with the
//! result of each.

use std::{net::TcpListener, path::Path, process::Stdio, time::Duration};

use http::Request;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::{sleep, timeout},
};
use weft_tests::get;

use crate::Case;

/// More than there are cases.
const PORTS: u16 = 100;
/// How long a case may take to report a result before it is called again.
const PATIENCE: Duration = Duration::from_secs(3);
const INTERVAL: Duration = Duration::from_millis(10);

/// A running h2specd, which ends with this.
pub(crate) struct Server {
    _process: Child,
    /// The port of its page.
    page: u16,
}

/// What its page shows of a case.
pub(crate) struct Entry {
    id: String,
    pub(crate) port: u16,
    what: String,
    /// `None` until it was called.
    outcome: Option<Result<(), String>>,
}

impl Server {
    /// # Panics
    /// It does not start.
    pub(crate) async fn start(program: &Path) -> Self {
        // Another program may take one of the ports first.
        for _ in 0..10 {
            let page = free_range();
            let mut command = Command::new(program);
            command.args(["--timeout", "5", "--port", &page.to_string(), "--from-port", &(page + 1).to_string()]);
            let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
            let mut process = process.spawn().expect("h2specd starts");
            while process.try_wait().expect("a child can be asked").is_none() {
                if TcpStream::connect(("127.0.0.1", page)).await.is_ok() {
                    return Self { _process: process, page };
                }
                sleep(INTERVAL).await;
            }
        }
        panic!("h2specd found no free ports");
    }

    pub(crate) async fn cases(&self) -> Vec<Entry> {
        entries(&get(self.page, "/report").await.1)
    }

    /// Calls the inbound port until the case behind it has reported a result.
    pub(crate) async fn judge(&mut self, inbound: u16, case: &Entry) -> Case {
        loop {
            let calling = tokio::spawn(call(inbound));
            let outcome = timeout(PATIENCE, self.outcome(case.port)).await;
            calling.abort();
            if let Ok(outcome) = outcome {
                return Case { id: case.id.clone(), what: case.what.clone(), trouble: outcome.err() };
            }
        }
    }

    async fn outcome(&self, port: u16) -> Result<(), String> {
        loop {
            let outcome = self.cases().await.into_iter().find(|case| case.port == port).and_then(|case| case.outcome);
            match outcome {
                Some(outcome) => return outcome,
                None => sleep(INTERVAL).await,
            }
        }
    }
}

/// A call whose answer does not matter: the service judges how the call was made.
async fn call(port: u16) -> anyhow::Result<()> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    let connection = tokio::spawn(connection);
    let (answer, _) = sender.ready().await?.send_request(Request::get("http://suite.shop/").body(())?, true)?;
    let mut body = answer.await?.into_body();
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    connection.abort();
    Ok(())
}

/// The cases on the page: a `<div>` each, with a link to its port, below the `<div>`s of their sections.
fn entries(page: &str) -> Vec<Entry> {
    let (mut section, mut place) = ("", 0);
    let mut entries = Vec::new();
    for div in page.split("<div>").skip(1) {
        let Some((label, link)) = div.split_once("<a href=") else {
            (section, place) = (div.split_once(". ").map_or("", |(number, _)| number), 0);
            continue;
        };
        place += 1;
        let port = link.split(['/', ':', '"']).find_map(|part| part.parse().ok()).expect("a link has a port");
        // Then follows what the case is about, and below that what went wrong.
        let (_, told) = link.split_once("</a>").expect("a link ends");
        let (what, trouble) = told.split_once("</div>").expect("a div ends");
        let outcome = match label {
            _ if label.contains("color: green") => Some(Ok(())),
            _ if label.contains('\u{2716}') => Some(Err(plain(trouble))),
            _ => None,
        };
        entries.push(Entry { id: format!("client/{section}/{place}"), port, what: what.trim().to_owned(), outcome });
    }
    entries
}

/// Text without tags.
fn plain(html: &str) -> String {
    let words: String = html.split('<').map(|part| part.split_once('>').map_or("", |(_, text)| text)).collect();
    words.replace("&nbsp;", " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The first of [`PORTS`] ports in a row that were free a moment ago.
fn free_range() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("a bound socket").port();
        let ports: Option<Vec<u16>> = (0..PORTS).map(|place| first.checked_add(place)).collect();
        if ports.is_some_and(|ports| ports.iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())) {
            return first;
        }
    }
}
