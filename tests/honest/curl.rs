//! Each request of curl directly and through the mesh. The answers are compared byte for byte, except the fields of a
//! hop.

use std::{collections::BTreeMap, env, fs, path::Path};

use tokio::{process::Command, time::timeout};
use weft_tests::{Bed, outside, result, skip};

use crate::{LIMIT, cases::http, missing, server::Server};

/// How often a server is asked directly until it answers as it did through the mesh.
const DIRECT_TRIES: usize = 3;

/// Requests to every server.
const EVERY: &[&[&str]] = &[
    &["/"],
    &["/", "--head"],
    &["/", "-X", "OPTIONS"],
    &["/", "--http1.0"],
    &["/", "-H", "Connection: close"],
    &["/", "-H", "Accept-Encoding: gzip"],
    &["/not-there"],
    &["/?a=1&b=%20c&d=%26", "-A", "honest/1.0"],
    &["/", "-d", "a=1&b=2"],
    &["/", "-X", "DELETE"],
];

/// Requests to servers of files.
const FILES: &[&[&str]] = &[
    &["/1m"],
    &["/1m", "--head"],
    &["/1m", "-r", "0-99"],
    &["/1m", "-r", "1000000-"],
    &["/1m", "-r", "-10"],
    &["/1m", "-r", "5000000-"],
    &["/1m", "-H", "If-None-Match: *"],
    &["/1m", "-H", "If-Modified-Since: Fri, 01 Jan 2038 00:00:00 GMT"],
    &["/1m", "-H", "If-Match: \"another\""],
    &["/old"],
    &["/a/../index.html", "--path-as-is"],
    &["//index.html"],
    &["/index%2ehtml"],
];

/// Requests to Node's plain server, which echoes what it has seen. Answers that count for the breaker are spread out.
const BARE: &[&[&str]] = &[
    &["/early-hints"],
    &["/processing"],
    &["/trailers"],
    &["/trailers", "-H", "TE: trailers"],
    &["/events", "-N"],
    &["/stream"],
    &["/stream", "--http1.0"],
    &["/gzip"],
    &["/gzip", "--compressed"],
    &["/many-headers"],
    &["/300-headers"],
    &["/cookies"],
    &["/large-header"],
    &["/odd-reason"],
    &["/latin1"],
    &["/empty-header"],
    &["/204"],
    &["/304"],
    &["/close"],
    &["/no-length"],
    &["/large?bytes=20000000"],
    &["/large?bytes=20000000", "--head"],
    &["/status/201"],
    &["/status/400"],
    &["/status/418"],
    &["/status/429"],
    &["/echo", "-X", "PROPFIND"],
    &["/status/500"],
    &["/echo", "-X", "M-SEARCH"],
    &["/echo", "-X", "PATCH", "-d", "patch"],
    &["/status/502"],
    &["/echo", "-X", "NOT-KNOWN"],
    &["/echo", "-X", "PUT", "--data-binary", "@1m"],
    &["/echo", "--data-binary", "@20m"],
    &["/status/503"],
    &["/echo", "--data-binary", "@1m", "-H", "Transfer-Encoding: chunked"],
    &["/echo", "--data-binary", "@1m", "-H", "Expect: 100-continue"],
    &["/refuse", "--data-binary", "@1m", "-H", "Expect: 100-continue"],
    &["/echo", "-H", "Content-Type: multipart/form-data; boundary=x", "--data-binary", "@multipart"],
    &["/echo", "-d", ""],
    &["/echo", "-X", "POST", "-H", "Content-Length: 0"],
    &["/echo", "-X", "GET", "-d", "a body"],
    &["/echo", "-X", "DELETE", "-d", "a body"],
    &["/echo", "-u", "user:password"],
    &["/status/504"],
    &["/echo", "-b", "a=1; b=2"],
    &["/echo", "-b", "a=1", "-H", "Cookie: b=2"],
    &["/echo", "-H", "X-Twice: 1", "-H", "X-Twice: 2"],
    &["/echo", "-H", "X-Empty;"],
    &["/status/599"],
    &["/echo", "-H", "X-Spaces:    in  between   "],
    &["/echo", "-H", "X-Latin: caf\u{e9}"],
    &["/echo", "-H", "X_Underscore: 1", "-H", "X.Dot: 1"],
    &["/echo", "-H", "Accept: a, b;q=0.5", "-H", "Accept-Language: de"],
    &["/echo", "-H", "Forwarded: for=1.2.3.4", "-H", "X-Forwarded-For: 1.2.3.4", "-H", "Via: 1.1 other"],
    // The sidecar passes on only declared upgrades: the field belongs to a hop (RFC 9110, section 7.6.1).
    &["/status/200", "-H", "Connection: Upgrade", "-H", "Upgrade: not-known"],
    &["/echo", "-H", "Host: EXAMPLE.test"],
    &["/echo", "-H", "Host: example.test:8080"],
    &["/echo", "-H", "Origin: http://example.test", "-X", "OPTIONS", "-H", "Access-Control-Request-Method: PUT"],
    &["/echo", "-X", "OPTIONS", "--request-target", "*"],
    &["/echo", "--request-target", "/a//b/./../c?d?e"],
    &["/echo?%", "--path-as-is"],
    &["/echo/%00%2F%C3%BC/ü"],
    &["/echo/;a=b,c|d{e}", "-g"],
    &["/echo", "-H", "@many", "-A", "many"],
    &["/echo?${LONG}"],
    &["/echo", "-H", "X-Long: ${LONG}"],
    &["/early", "--data-binary", "@1m"],
];

const EXPRESS: &[&[&str]] = &[
    &["/json"],
    &["/json", "-H", "Content-Type: application/json", "-d", "{\"a\":[1,2]}"],
    &["/json", "-H", "Content-Type: application/json", "-d", "{not json"],
    &["/form", "-d", "a[b]=1&a[c]=2"],
    &["/redirect"],
    &["/redirect", "-L"],
    &["/boom"],
    &["/stream"],
    &["/files/package.json"],
    &["/files/package.json", "-r", "0-9"],
    &["/files/package.json", "-H", "If-None-Match: *"],
];

const FASTIFY: &[&[&str]] = &[
    &["/json"],
    &["/missing"],
    &["/boom"],
    &["/json", "-H", "Content-Type: application/json", "-d", "{\"a\":[1,2]}"],
    &["/json", "-H", "Content-Type: application/json", "-d", "{not json"],
    &["/json", "-H", "Content-Type: application/json", "--data-binary", "@1m"],
];

const PYTHON: &[&[&str]] =
    &[&["/stream"], &["/status/404"], &["/status/500"], &["/status/418"], &["/", "--data-binary", "@1m"]];

/// Fields that belong to a hop, or differ from one request to the next.
const OF_A_HOP: [&str; 4] = ["connection", "date", "keep-alive", "transfer-encoding"];

/// The requests to the server of this name.
fn requests(server: &str) -> Vec<&'static [&'static str]> {
    let own: &[&[&str]] = match server {
        "nginx" | "apache" | "caddy" => FILES,
        "node-http" => BARE,
        "express" => EXPRESS,
        "fastify" => FASTIFY,
        "gunicorn" | "uvicorn" => PYTHON,
        _ => &[],
    };
    let mut all: Vec<_> = EVERY.iter().chain(own).copied().collect();
    if server == "node-http" && env::var_os("WEFT_HONEST_SECONDS").is_some() {
        all.push(&["/large?bytes=500000000"]);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn curl_sees_no_difference() {
    let _turn = crate::turn().await;
    let (servers, absent): (Vec<Server>, Vec<Server>) =
        http::servers().into_iter().partition(|server| missing(server.needs.iter().copied()).is_none());
    for server in absent {
        skip(&format!("{} is not installed; tests/honest/install does it", server.name));
    }
    if outside("curl").is_none() {
        return skip("curl is not installed");
    }
    let bed = Bed::start(&servers.iter().map(Server::yaml).collect::<String>()).await;
    write_files(bed.dir());
    // Of a service, as programs have it: a person's refuses names that may be a web site's.
    let outbound = bed.ports(&format!("{}-1", servers[0].name)).outbound;
    let (mut checks, mut differences) = (0, Vec::new());
    for server in &servers {
        let app = bed.ports(&format!("{}-1", server.name)).app;
        for request in requests(&server.name) {
            let mesh = ask(bed.dir(), server, outbound, request).await;
            checks += 1;
            // Some answers differ from one direct request to the next: a server that answers early and closes ends curl
            // while it still sends, or not.
            for again in (0..DIRECT_TRIES).rev() {
                let direct = ask(bed.dir(), server, app, request).await;
                let Some(difference) = direct.differs(&mesh) else { break };
                let difference = format!("{} {}: {difference}", server.name, request.join(" "));
                result(&format!("curl: {difference}"));
                if again == 0 {
                    differences.push(difference);
                }
            }
        }
    }
    result(&format!("curl: {} of {checks} answers are the same through the mesh", checks - differences.len()));
    assert!(differences.is_empty(), "{} of {checks} differ:\n{}", differences.len(), differences.join("\n"));
}

/// Writes the files that requests send.
fn write_files(dir: &Path) {
    let write = |name: &str, content: Vec<u8>| fs::write(dir.join(name), content).expect("the folder can be written");
    write("1m", vec![b'u'; 1_000_000]);
    write("20m", (0..20_000_000u32).map(|n| (n % 251) as u8).collect());
    let part = "--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--x--\r\n";
    write("multipart", part.as_bytes().to_vec());
    write("many", (0..90).map(|n| format!("X-Header-{n}: value {n}\n")).collect::<String>().into_bytes());
}

/// An answer as curl reports it.
#[derive(Debug)]
struct Answer {
    exit: String,
    /// Each head, of 1xx too, and the trailers: the status line, then fields by name.
    heads: Vec<(String, BTreeMap<String, Vec<String>>)>,
    body: Vec<u8>,
}

async fn ask(dir: &Path, server: &Server, port: u16, request: &[&str]) -> Answer {
    // The host name belongs to nobody, so that a server sees the same name both ways.
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "60", "-D", "head", "-o", "body", "--connect-to"]);
    command.arg(format!("::127.0.0.1:{port}")).args(["-H", &format!("x-weft-service: {}", server.name)]);
    let long = "l".repeat(7000);
    command.args(request[1..].iter().map(|word| word.replace("${LONG}", &long)));
    command.arg(format!("http://example.test{}", request[0].replace("${LONG}", &long)));
    for file in ["head", "body"] {
        let _ = fs::remove_file(dir.join(file));
    }
    let output = timeout(LIMIT, command.current_dir(dir).kill_on_drop(true).output()).await;
    let output = output.expect("curl ends in time").expect("curl starts");
    let head = fs::read(dir.join("head")).unwrap_or_default();
    Answer {
        exit: format!("{:?}", output.status.code()),
        heads: heads(&String::from_utf8_lossy(&head)),
        // For HEAD, curl writes the head as the body.
        body: if request.contains(&"--head") { Vec::new() } else { fs::read(dir.join("body")).unwrap_or_default() },
    }
}

fn heads(text: &str) -> Vec<(String, BTreeMap<String, Vec<String>>)> {
    let mut heads = Vec::new();
    for part in text.split("\r\n\r\n").filter(|part| !part.is_empty()) {
        let (mut first, mut fields) = (String::new(), BTreeMap::<String, Vec<String>>::new());
        for line in part.split("\r\n") {
            if line.starts_with("HTTP/") {
                // Each hop may use its own minor version of HTTP/1.
                line.split_once(' ').unwrap_or_default().1.clone_into(&mut first);
            } else if let Some((name, value)) = line.split_once(':') {
                let name = name.to_ascii_lowercase();
                if !OF_A_HOP.contains(&name.as_str()) {
                    fields.entry(name).or_default().push(value.trim().to_owned());
                }
            }
        }
        heads.push((first, fields));
    }
    heads
}

impl Answer {
    fn differs(&self, mesh: &Self) -> Option<String> {
        if self.exit != mesh.exit {
            return Some(format!(
                "curl ends with {} directly, {} through the mesh ({:?})",
                self.exit, mesh.exit, mesh.heads
            ));
        }
        if !self.has_same_heads(mesh) {
            return Some(format!("\n  direct {:?}\n  mesh   {:?}", self.heads, mesh.heads));
        }
        (self.body != mesh.body).then(|| {
            let shown = |body: &[u8]| String::from_utf8_lossy(&body[..body.len().min(1000)]).into_owned();
            let (direct, mesh) = (shown(&self.body), shown(&mesh.body));
            format!("bodies of {} and {} bytes:\n{direct}\n--- mesh\n{mesh}", self.body.len(), mesh.len())
        })
    }

    /// Compares the heads without a correct `content-length`: each hop may delimit a body in its own way.
    fn has_same_heads(&self, mesh: &Self) -> bool {
        let without = |answer: &Self| {
            let mut heads = answer.heads.clone();
            let length = vec![answer.body.len().to_string()];
            for (_, fields) in &mut heads {
                if fields.get("content-length") == Some(&length) {
                    fields.remove("content-length");
                }
            }
            heads
        };
        without(self) == without(mesh)
    }
}
