//! What `docs/headers.md` says of requests is what their services see, and what it says of answers is what callers see.

use std::fs;

use weft_tests::{Bed, Client, probe, probe_service, root};

/// What a service sees of a header that its caller has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    AsSent,
    Other,
}

use Seen::{AsSent, Nothing, Other};

impl Seen {
    /// Words of which the page has to have one, in the cell for calls out or for calls in.
    fn words(self) -> &'static [&'static str] {
        match self {
            Nothing => &["removed", "never written", "not set"],
            AsSent => &["passed on"],
            Other => &["set"],
        }
    }
}

/// A header, what is sent, and what a service sees: over HTTP/2 from one end to the other, and over HTTP/1.1.
const REQUESTS: &[(&str, &str, Option<Seen>, Option<Seen>)] = &[
    ("x-forwarded-client-cert", "URI=spiffe://weft.local/ns/shop/sa/admin", Some(Other), Some(Other)),
    ("x_forwarded_client_cert", "URI=spiffe://weft.local/ns/shop/sa/admin", Some(Nothing), Some(Nothing)),
    ("x-request-id", "7", Some(AsSent), Some(AsSent)),
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Some(Other), Some(Other)),
    ("tracestate", "a=b", Some(AsSent), Some(AsSent)),
    ("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1", Some(AsSent), Some(AsSent)),
    ("x-b3-traceid", "80f198ee56343ba864fe8b2a57d3eff7", Some(AsSent), Some(AsSent)),
    ("x-weft-service", "", Some(Nothing), Some(Nothing)),
    ("x-weft-error", "no-endpoint", Some(AsSent), Some(AsSent)),
    ("x-weft-fallback", "x", Some(AsSent), Some(AsSent)),
    ("x-weft-tunnel", "1", Some(AsSent), Some(AsSent)),
    ("x-weft-reason", "x", Some(AsSent), Some(Nothing)),
    ("x-weft-upgrade", "x", Some(AsSent), Some(Nothing)),
    ("grpc-timeout", "50S", Some(Other), Some(Other)),
    ("grpc-retry-pushback-ms", "5", Some(AsSent), Some(AsSent)),
    ("retry-after", "5", Some(AsSent), Some(AsSent)),
    ("keep-alive", "timeout=5", None, Some(Nothing)),
    ("proxy-connection", "keep-alive", None, Some(Nothing)),
    ("te", "trailers", None, Some(Nothing)),
    ("upgrade", "h2c", None, Some(Nothing)),
    ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA", Some(AsSent), Some(Nothing)),
    ("trailer", "x", Some(AsSent), Some(AsSent)),
    ("cookie", "a=b", Some(AsSent), Some(AsSent)),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==", Some(AsSent), Some(AsSent)),
    ("via", "1.1 other", Some(AsSent), Some(AsSent)),
    ("forwarded", "for=192.0.2.1", Some(AsSent), Some(AsSent)),
    ("x-forwarded-for", "192.0.2.1", Some(AsSent), Some(AsSent)),
    ("x-forwarded-host", "other", Some(AsSent), Some(AsSent)),
    ("x-forwarded-proto", "https", Some(AsSent), Some(AsSent)),
];

/// A header that a service answers with, and what its caller sees: over HTTP/2 from one end to the other, and over HTTP/1.1.
const ANSWERS: &[(&str, &str, Option<Seen>, Option<Seen>)] = &[
    ("x-forwarded-client-cert", "URI=spiffe://weft.local/ns/shop/sa/admin", Some(AsSent), Some(AsSent)),
    ("x-request-id", "7", Some(AsSent), Some(AsSent)),
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Some(AsSent), Some(AsSent)),
    ("tracestate", "a=b", Some(AsSent), Some(AsSent)),
    ("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1", Some(AsSent), Some(AsSent)),
    ("x-weft-service", "other", Some(AsSent), Some(AsSent)),
    ("x-weft-error", "no-endpoint", Some(Nothing), Some(Nothing)),
    ("x-weft-fallback", "x", Some(Nothing), Some(Nothing)),
    ("x-weft-tunnel", "1", Some(AsSent), Some(AsSent)),
    ("x-weft-reason", "x", Some(Nothing), Some(Nothing)),
    ("x-weft-upgrade", "x", Some(AsSent), Some(Nothing)),
    ("grpc-timeout", "50S", Some(AsSent), Some(AsSent)),
    ("grpc-retry-pushback-ms", "5", Some(AsSent), Some(AsSent)),
    ("retry-after", "5", Some(AsSent), Some(AsSent)),
    ("host", "other", Some(AsSent), Some(Nothing)),
    ("keep-alive", "timeout=5", None, Some(Nothing)),
    ("proxy-connection", "keep-alive", None, Some(Nothing)),
    ("te", "trailers", None, Some(Nothing)),
    ("upgrade", "h2c", None, Some(Nothing)),
    ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA", Some(AsSent), Some(Nothing)),
    ("expect", "100-continue", Some(AsSent), Some(AsSent)),
    ("trailer", "x", Some(AsSent), Some(AsSent)),
    ("cookie", "a=b", Some(AsSent), Some(AsSent)),
    ("sec-websocket-accept", "x", Some(AsSent), Some(AsSent)),
    ("origin", "http://other", Some(AsSent), Some(AsSent)),
    ("via", "1.1 other", Some(AsSent), Some(AsSent)),
    ("forwarded", "for=192.0.2.1", Some(AsSent), Some(AsSent)),
    ("x-forwarded-for", "192.0.2.1", Some(AsSent), Some(AsSent)),
];

/// The headers whose rows are about how messages are framed, which other tests look at: `http1`, `paths`, `breakers`,
/// `forward`.
const OTHERS: &[&str] = &[
    "x-b3-spanid",
    "x-b3-sampled",
    "x-b3-flags",
    "host",
    ":authority",
    "connection",
    "transfer-encoding",
    "expect",
    "content-length",
    "sec-websocket-version",
    "sec-websocket-accept",
    "origin",
    "sec-fetch-site",
];

/// The cells of each row of the page's table.
fn rows() -> Vec<Vec<String>> {
    let page = fs::read_to_string(root().join("docs/headers.md")).expect("the page is there");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// The names in backticks in a cell.
fn names(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn each_header_of_the_page_is_known_here_and_the_page_says_what_is_seen() {
    let rows = rows();
    let known: Vec<&str> = REQUESTS.iter().map(|(name, ..)| *name).chain(OTHERS.iter().copied()).collect();
    let on_page: Vec<&str> = rows.iter().flat_map(|row| names(&row[0])).collect();
    for name in &on_page {
        assert!(known.contains(name), "tests/headers.rs lacks `{name}`");
    }
    for (name, _, over_http2, over_http1) in REQUESTS {
        let row = rows
            .iter()
            .find(|row| names(&row[0]).contains(name))
            .unwrap_or_else(|| panic!("docs/headers.md lacks `{name}`"));
        let said = row[1..].join(" ").to_lowercase();
        for seen in [over_http2, over_http1].into_iter().flatten() {
            assert!(
                seen.words().iter().any(|word| said.contains(word)),
                "`{name}` is {seen:?}, and the page says: {said}"
            );
        }
    }
}

fn judge(sent: &str, seen: Option<&str>) -> Seen {
    match seen {
        None => Nothing,
        Some(seen) if seen == sent => AsSent,
        Some(_) => Other,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn services_see_what_the_page_says() {
    let web = "  web: { run: \"${BIN}/weft-test-app\", protocol: http1, env: { SPEAK: http1 } }\n";
    let bed = Bed::start(&format!("{}{web}", probe_service(1))).await;
    let mut wrong = Vec::new();
    for (name, value, over_http2, over_http1) in REQUESTS {
        if let Some(expected) = over_http2 {
            let value = if *name == "x-weft-service" { "probe" } else { value };
            let answer = probe(&bed.channel(), "Say", &[("x-do", "headers"), (*name, value)]).await.expect("an answer");
            let text = answer.into_inner().text;
            let seen = text.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
            if judge(value, seen) != *expected {
                wrong.push(format!("{name} over HTTP/2: {seen:?}, not {expected:?}"));
            }
        }
        if let Some(expected) = over_http1 {
            let value = if *name == "x-weft-service" { "web" } else { value };
            let mut client = Client::connect(bed.outbound()).await;
            client
                .send(&format!("POST /x HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\n{name}: {value}\r\n\r\n"))
                .await;
            let (_, echo) = client.answer().await;
            let seen = echo.lines().find_map(|line| line.trim_end().strip_prefix(&format!("{name}: ")));
            if judge(value, seen) != *expected {
                wrong.push(format!("{name} over HTTP/1.1: {seen:?}, not {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn callers_see_what_the_page_says_of_answers() {
    let rows = rows();
    let web = "  web: { run: \"${BIN}/weft-test-app\", protocol: http1, env: { SPEAK: http1 } }\n";
    let bed = Bed::start(&format!("{}{web}", probe_service(1))).await;
    let mut wrong = Vec::new();
    for (name, value, over_http2, over_http1) in ANSWERS {
        let row = rows.iter().find(|row| names(&row[0]).contains(name));
        let row = row.unwrap_or_else(|| panic!("docs/headers.md lacks `{name}`"));
        // What is said of answers, or in the last column; "as" another cell says the same as that.
        let said = row[1..].join(" ").to_lowercase();
        for seen in [over_http2, over_http1].into_iter().flatten() {
            assert!(seen.words().iter().any(|word| said.contains(word)), "`{name}` is {seen:?}, and the page: {said}");
        }
        let field = format!("{name}: {value}");
        if let Some(expected) = over_http2 {
            let answer = probe(&bed.channel(), "Say", &[("x-answer", &field)]).await.expect("an answer");
            let seen = answer.metadata().get(*name).map(|seen| seen.to_str().expect("text"));
            if judge(value, seen) != *expected {
                wrong.push(format!("{name} over HTTP/2: {seen:?}, not {expected:?}"));
            }
        }
        if let Some(expected) = over_http1 {
            let mut client = Client::connect(bed.outbound()).await;
            client.send(&format!("GET /x HTTP/1.1\r\nhost: web\r\nx-answer: {field}\r\n\r\n")).await;
            let (head, _) = client.answer().await;
            let seen = head.lines().find_map(|line| line.trim_end().strip_prefix(&format!("{name}: ")));
            if judge(value, seen) != *expected {
                wrong.push(format!("{name} over HTTP/1.1: {seen:?}, not {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
