use super::*;
use crate::headers::Name;

const LIMITS: Limits = Limits { head_bytes: 1024, list_bytes: 1024, chunk_line_bytes: 64, trailer_bytes: 256 };

/// What was received, with the parts of each body joined.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    heads: Vec<(Headers, bool)>,
    bodies: Vec<Vec<u8>>,
    trailers: Vec<Headers>,
    ends: usize,
    error: Option<Error>,
}

/// Reads bytes in pieces of `size`, followed by the end of the connection.
fn read(mut decoder: Decoder, bytes: &[u8], size: usize) -> Seen {
    let (mut seen, mut pending) = (Seen::default(), Vec::new());
    for piece in bytes.chunks(size) {
        pending.extend_from_slice(piece);
        let mut input = &pending[..];
        loop {
            match decoder.receive(&mut input) {
                Ok(Some(event)) => seen.take(event),
                Ok(None) => break,
                Err(e) => {
                    seen.error = Some(e);
                    return seen;
                }
            }
        }
        let left = input.len();
        pending.drain(..pending.len() - left);
    }
    match decoder.end() {
        Ok(event) => event.into_iter().for_each(|event| seen.take(event)),
        Err(e) => seen.error = Some(e),
    }
    seen
}

impl Seen {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Request { headers, is_end, .. } | Event::Response { headers, is_end, .. } => {
                self.heads.push((headers, is_end));
                self.bodies.push(Vec::new());
                self.ends += usize::from(is_end);
            }
            Event::Data { data, is_end } => {
                self.bodies.last_mut().expect("a head came first").extend_from_slice(data);
                self.ends += usize::from(is_end);
            }
            Event::Trailers(trailers) => {
                self.trailers.push(trailers);
                self.ends += 1;
            }
        }
    }
}

/// Reads requests, and checks that the result does not depend on the size of the pieces.
fn requests(bytes: &str) -> Seen {
    let whole = read(Decoder::requests(LIMITS), bytes.as_bytes(), usize::MAX);
    for size in [1, 2, 3, 7] {
        assert_eq!(read(Decoder::requests(LIMITS), bytes.as_bytes(), size), whole, "in pieces of {size}: {bytes:?}");
    }
    whole
}

fn responses(to: MethodKind, bytes: &str) -> Seen {
    let decoder = || {
        let mut decoder = Decoder::responses(LIMITS);
        decoder.expect(Request { method: to, is_http10: false, is_keep_alive: true, expects_continue: false });
        decoder
    };
    let whole = read(decoder(), bytes.as_bytes(), usize::MAX);
    for size in [1, 2, 3, 7] {
        assert_eq!(read(decoder(), bytes.as_bytes(), size), whole, "in pieces of {size}: {bytes:?}");
    }
    whole
}

fn list(fields: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::new();
    fields.iter().for_each(|(name, value)| headers.append_bytes(name.as_bytes(), value.as_bytes()));
    headers
}

#[test]
fn a_request_is_decoded_into_the_form_of_http2() {
    let seen = requests(
        "GET /a?b HTTP/1.1\r\nHost: users:80\r\nX-One: 1\r\nConnection: X-Hop, close\r\nx-hop: 2\r\nTE: gzip\r\nCookie: a=b\r\n\r\n",
    );
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/a?b"), (":authority", "users:80")];
    let fields = [&fields[..], &[("x-one", "1"), ("cookie", "a=b")]].concat();
    assert_eq!(seen.heads, [(list(&fields), true)]);
    assert_eq!(seen.error, None);
}

#[test]
fn bodies_end_by_their_length_or_their_last_chunk() {
    let seen = requests(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
         POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\nA;x=\"y\"\r\n0123456789\r\n0\r\nX-Sum: 1\r\nHost: b\r\n\r\n\
         POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n\
         \r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_eq!(seen.error, None);
    let bodies: Vec<_> = seen.bodies.iter().map(|body| String::from_utf8_lossy(body).into_owned()).collect();
    assert_eq!(bodies, ["hello", "abc0123456789", "", ""]);
    assert_eq!((seen.trailers, seen.ends), (vec![list(&[("x-sum", "1")])], 4));
}

#[test]
fn ambiguous_messages_are_refused() {
    let fields = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n0\r\n\r\n");
    let chunks = |chunks: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
    let cases = [
        (fields("Content-Length: 1\r\nTransfer-Encoding: chunked"), Error::TwoLengths),
        (fields("Content-Length: 1\r\nContent-Length: 1"), Error::Length),
        (fields("Content-Length: 1, 1"), Error::Length),
        (fields("Content-Length: +1"), Error::Length),
        (fields("Content-Length: 0x1"), Error::Length),
        (fields("Content-Length:"), Error::Length),
        (fields("Content-Length: 99999999999999999999"), Error::Length),
        (fields("Transfer-Encoding: chunked, chunked"), Error::TransferEncoding),
        (fields("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), Error::TransferEncoding),
        (fields("Transfer-Encoding: chunked, gzip"), Error::TransferEncoding),
        (fields("Transfer-Encoding:"), Error::TransferEncoding),
        (fields("Transfer-Encoding: gzip, chunked"), Error::TransferCoding),
        (fields("Transfer-Encoding: \x0bchunked"), Error::Control),
        (fields("Transfer-Encoding : chunked"), Error::Field),
        (fields("Transfer-Encoding: xchunked"), Error::TransferCoding),
        (fields("X: a\r\n b"), Error::Field),
        (fields("X: a\n Y: b"), Error::Control),
        (fields("X: a\rY: b"), Error::Control),
        (fields("X: \0"), Error::Control),
        (fields(": a"), Error::Field),
        (fields("a b: c"), Error::Field),
        (fields("a"), Error::Field),
        (fields("Host: b"), Error::Host),
        (fields("Expect: the moon"), Error::Expectation),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), Error::TransferEncoding),
        ("GET / HTTP/1.1\r\n\r\n".into(), Error::Host),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".into(), Error::Host),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n".into(), Error::Host),
        ("GET / HTTP/1.1\nHost: a\n\n".into(), Error::Control),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n".into(), Error::RequestLine),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n".into(), Error::RequestLine),
        ("GET /\r\nHost: a\r\n\r\n".into(), Error::RequestLine),
        ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n".into(), Error::RequestLine),
        ("GET / http/1.1\r\nHost: a\r\n\r\n".into(), Error::RequestLine),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n".into(), Error::Version),
        ("GET /#a HTTP/1.1\r\nHost: a\r\n\r\n".into(), Error::Target),
        ("GET /\u{e4} HTTP/1.1\r\nHost: a\r\n\r\n".into(), Error::Target),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n".into(), Error::Target),
        ("GET a:1 HTTP/1.1\r\nHost: a\r\n\r\n".into(), Error::Target),
        ("GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n".into(), Error::Target),
        ("GET ftp://a/x HTTP/1.1\r\nHost: a\r\n\r\n".into(), Error::Target),
        ("CONNECT /x HTTP/1.1\r\nHost: a\r\n\r\n".into(), Error::Target),
        ("CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n".into(), Error::Target),
        (chunks("\r\n"), Error::Chunk),
        (chunks("-1\r\n"), Error::Chunk),
        (chunks("+1\r\n"), Error::Chunk),
        (chunks("0x1\r\n"), Error::Chunk),
        (chunks(" 1\r\n"), Error::Chunk),
        (chunks("1 \r\na\r\n"), Error::Chunk),
        (chunks("1\na\n"), Error::Chunk),
        (chunks("1;\r\r\n"), Error::Chunk),
        (chunks("1\r\nab\r\n"), Error::Chunk),
        (chunks("fffffffffffffffff\r\n"), Error::Chunk),
        (chunks("0\r\nx: y\n\r\n"), Error::Control),
        (chunks(&format!("1;{}\r\na\r\n", "x".repeat(64))), Error::ChunkTooLarge),
        (chunks(&format!("0\r\nx: {}\r\n\r\n", "x".repeat(256))), Error::ChunkTooLarge),
        (fields(&"a: b\r\n".repeat(32)), Error::HeadTooLarge),
        (fields(&format!("Connection: {}", "a,".repeat(65))), Error::HeadTooLarge),
        (fields(&format!("a: {}", "x".repeat(1024))), Error::HeadTooLarge),
        (chunks("5\r\nhel"), Error::Cut),
    ];
    for (bytes, error) in cases {
        assert_eq!(requests(&bytes).error, Some(error), "{bytes:?}");
    }
}

#[test]
fn targets_of_every_form_are_read() {
    for (line, authority, path) in [
        ("GET http://b:1/x?y HTTP/1.1", "b:1", Some("/x?y")),
        ("GET HTTP://b HTTP/1.1", "b", Some("/")),
        ("OPTIONS * HTTP/1.1", "a", Some("*")),
        ("CONNECT b:443 HTTP/1.1", "b:443", None),
        ("GET / HTTP/1.1", "a", Some("/")),
    ] {
        let seen = requests(&format!("{line}\r\nHost: a\r\n\r\n"));
        let head = &seen.heads[0].0;
        assert_eq!(head.authority(), Some(authority.as_bytes()), "{line}");
        assert_eq!(head.path(), path.map(str::as_bytes), "{line}");
    }
    assert_eq!(requests("GET / HTTP/1.0\r\n\r\n").heads[0].0.authority(), None);
}

#[test]
fn the_end_of_a_response_depends_on_its_request_and_status() {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
    let seen = responses(MethodKind::Other, &format!("{ok}abc"));
    assert_eq!((&seen.bodies[0][..], seen.ends, seen.error), (&b"abc"[..], 1, None));
    assert_eq!(responses(MethodKind::Head, ok).ends, 1);
    assert_eq!(responses(MethodKind::Other, "HTTP/1.1 304 x\r\nContent-Length: 3\r\n\r\n").ends, 1);
    let empty = responses(MethodKind::Other, "HTTP/1.1 204\r\nContent-Length: 3\r\n\r\n");
    assert_eq!((empty.ends, empty.heads[0].0.get(Name::CONTENT_LENGTH)), (1, None));
    let seen = responses(MethodKind::Other, "HTTP/1.0 200 OK\r\n\r\nto the end");
    assert_eq!((&seen.bodies[0][..], seen.ends, seen.error), (&b"to the end"[..], 1, None));
    let seen =
        responses(MethodKind::Other, &format!("HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 100\r\n\r\n{ok}abc"));
    assert_eq!((seen.heads.len(), seen.ends, seen.error), (3, 1, None));
    assert_eq!(responses(MethodKind::Other, &format!("{ok}ab")).error, Some(Error::Cut));
    assert_eq!(responses(MethodKind::Other, "").error, Some(Error::Cut), "a response was expected");
    for line in ["HTTP/1.1 20 OK", "HTTP/1.1 2000", "HTTP/1.1  200", "HTTP/1.1 099 x", "HTTP/3.1 200 OK", "200 OK"] {
        let seen = responses(MethodKind::Other, &format!("{line}\r\n\r\n"));
        assert_eq!(seen.error, Some(Error::StatusLine), "{line}");
    }
}

#[test]
fn a_tunnel_starts_only_if_it_was_requested() {
    let asked = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n";
    let mut decoder = Decoder::requests(LIMITS);
    let bytes = format!("{asked}early");
    let mut input = bytes.as_bytes();
    let Ok(Some(Event::Request { headers, request, is_end })) = decoder.receive(&mut input) else { panic!("no head") };
    assert_eq!((headers.method(), headers.protocol()), (Some(&b"CONNECT"[..]), Some(&b"websocket"[..])));
    assert_eq!((request.method, is_end), (MethodKind::Upgrade, false));
    assert!(matches!(decoder.receive(&mut input), Ok(None)), "HTTP or raw bytes may follow");
    decoder.switch_to_raw();
    assert!(matches!(decoder.receive(&mut input), Ok(Some(Event::Data { data: b"early", is_end: false }))));

    for other in [
        "Upgrade: websocket\r\n",
        "Connection: upgrade\r\nUpgrade: h2c\r\n",
        "Connection: upgrade\r\nUpgrade: H2C-16\r\n",
        "Connection: upgrade\r\nUpgrade: TLS\r\n",
        "Connection: upgrade\r\nUpgrade: HTTP2-Settings\r\n",
        "Connection: upgrade\r\nUpgrade: a, b\r\n",
    ] {
        let seen = requests(&format!("GET / HTTP/1.1\r\nHost: a\r\n{other}\r\n"));
        assert_eq!(seen.heads[0].0.method(), Some(&b"GET"[..]), "{other}");
    }
    let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nbytes";
    let seen = responses(MethodKind::Upgrade, switching);
    assert_eq!((seen.heads[0].0.status(), &seen.bodies[0][..]), (Some(200), &b"bytes"[..]));
    assert_eq!(responses(MethodKind::Other, switching).error, Some(Error::Upgrade));
    let seen = responses(MethodKind::Upgrade, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert!(seen.heads[0].0.get(Name::other(DECLINED)).is_some() && seen.ends == 1);

    // An upgrade that the relay has declined is not offered to the service, and no response can accept it.
    assert_eq!(responses(MethodKind::Withheld, switching).error, Some(Error::Upgrade));
    let seen = responses(MethodKind::Withheld, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert!(seen.heads[0].0.get(Name::other(DECLINED)).is_some() && seen.ends == 1);
    let asks =
        [(":method", "CONNECT"), (":path", "/"), (":authority", "a"), (":protocol", "x-http"), ("content-length", "5")];
    let write = |more: &[(&str, &str)]| {
        let mut out = Vec::new();
        let request =
            Encoder::new().request(&mut out, &list(&[&asks[..], more].concat()), false).expect("it can be written");
        (String::from_utf8(out).expect("text"), request.method)
    };
    let offered = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x-http\r\n\r\n";
    assert_eq!(write(&[]), (offered.to_owned(), MethodKind::Upgrade));
    assert_eq!(write(&[(DECLINED, "1")]), ("GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), MethodKind::Withheld));
}

#[test]
fn a_server_that_treats_connect_like_another_method_gives_no_tunnel() {
    let accepted = responses(MethodKind::Connect, "HTTP/1.1 200 OK\r\nX-A: b\r\n\r\nbytes");
    assert_eq!((accepted.heads[0].0.status(), &accepted.bodies[0][..]), (Some(200), &b"bytes"[..]));
    // After such a response, the server may read the bytes of the tunnel as its next request.
    for answer in [
        "200 OK\r\nContent-Length: 0\r\n",
        "200 OK\r\nContent-Length: 2\r\n",
        "200 OK\r\nTransfer-Encoding: chunked\r\n",
        "204 No Content\r\n",
        "205 Reset Content\r\n",
    ] {
        let seen = responses(MethodKind::Connect, &format!("HTTP/1.1 {answer}\r\n"));
        assert_eq!((seen.error, seen.heads.len()), (Some(Error::ConnectWithBody), 0), "{answer}");
    }
    let refused = responses(MethodKind::Connect, "HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\nno");
    assert_eq!((refused.error, &refused.bodies[0][..]), (None, &b"no"[..]));
}

const ASKED: Request =
    Request { method: MethodKind::Other, is_http10: false, is_keep_alive: true, expects_continue: false };

fn written(head: &[(&str, &str)], parts: &[&str], to: Request) -> Result<(String, bool), Error> {
    let (mut encoder, mut out) = (Encoder::new(), Vec::new());
    encoder.upgrade_to(b"websocket");
    encoder.response(&mut out, &list(head), parts.is_empty(), to, to.is_keep_alive)?;
    for (place, part) in parts.iter().enumerate() {
        encoder.data(&mut out, part.as_bytes(), place + 1 == parts.len())?;
    }
    assert!(encoder.is_between_messages());
    Ok((String::from_utf8(out).expect("text"), encoder.must_close()))
}

#[test]
fn the_end_of_a_written_response_is_marked() {
    let write = |head: &[(&str, &str)], parts: &[&str], to| written(head, parts, to).expect("it can be written");
    assert_eq!(
        write(&[(":status", "200"), ("content-length", "3"), ("x-a", "b")], &["ab", "c"], ASKED),
        ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\nx-a: b\r\n\r\nabc".into(), false)
    );
    assert_eq!(
        write(&[(":status", "200")], &["ab", ""], ASKED).0,
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
    );
    assert_eq!(write(&[(":status", "404")], &[], ASKED).0, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(write(&[(":status", "204")], &[], ASKED).0, "HTTP/1.1 204 No Content\r\n\r\n");
    let head = Request { method: MethodKind::Head, ..ASKED };
    assert_eq!(
        write(&[(":status", "200"), ("content-length", "9")], &[], head).0,
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"
    );
    let old = Request { is_http10: true, is_keep_alive: false, ..ASKED };
    assert_eq!(
        write(&[(":status", "200")], &["ab", "c"], old),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc".into(), true)
    );
    let upgrade = Request { method: MethodKind::Upgrade, ..ASKED };
    assert_eq!(
        write(&[(":status", "200"), ("x-a", "b")], &[], upgrade).0,
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-a: b\r\n\r\n"
    );
    assert_eq!(
        write(&[(":status", "200"), (DECLINED, "declined"), ("content-length", "1")], &["a"], upgrade).0,
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na"
    );
    for (length, parts) in [("3", ["ab", ""]), ("1", ["ab", ""]), ("x", ["", ""])] {
        assert!(written(&[(":status", "200"), ("content-length", length)], &parts, ASKED).is_err(), "{length}");
    }
}

#[test]
fn requests_are_written_in_the_form_of_http1() {
    let (mut encoder, mut out) = (Encoder::new(), Vec::new());
    let fields = [
        (":method", "POST"),
        (":path", "/a"),
        (":authority", "b"),
        ("cookie", "c=d"),
        ("te", "trailers"),
        ("cookie", "e=f"),
    ];
    encoder.request(&mut out, &list(&fields), false).expect("it can be written");
    encoder.data(&mut out, b"0123456789abcdef0", false).expect("a part");
    encoder.trailers(&mut out, &list(&[("x-sum", "1")])).expect("the end");
    let text = String::from_utf8(out).expect("text");
    assert_eq!(
        text,
        "POST /a HTTP/1.1\r\nhost: b\r\ncookie: c=d; e=f\r\ntransfer-encoding: chunked\r\n\r\n\
         11\r\n0123456789abcdef0\r\n0\r\nx-sum: 1\r\n\r\n"
    );
    // Over HTTP/2, the host may be in either field.
    let mut out = Vec::new();
    let fields = [(":method", "GET"), (":path", "/"), ("host", "users.shop:80"), ("x-a", "b")];
    encoder.request(&mut out, &list(&fields), true).expect("it can be written");
    assert_eq!(out, b"GET / HTTP/1.1\r\nhost: users.shop:80\r\nx-a: b\r\n\r\n");
    let mut out = Vec::new();
    let refused = encoder.request(&mut out, &list(&[(":method", "GET"), (":path", ""), (":authority", "b")]), true);
    assert_eq!((refused, out.len()), (Err(Error::Target), 0));
    let mut out = Vec::new();
    // A request for a tunnel has no content, even if its fields say that it has.
    let fields = [(":method", "CONNECT"), (":protocol", "x"), (":path", "/a"), (":authority", "b")];
    let fields = [&fields[..], &[("content-length", "5"), ("expect", "100-continue")]].concat();
    let asked = encoder.request(&mut out, &list(&fields), false).expect("it can be written");
    assert_eq!(asked.method, MethodKind::Upgrade);
    assert_eq!(out, b"GET /a HTTP/1.1\r\nhost: b\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n");
}

#[test]
fn a_head_is_bounded_in_bytes_but_not_in_the_number_of_fields() {
    let limits = Limits { head_bytes: 1 << 16, list_bytes: 1 << 16, ..LIMITS };
    let fields = |count: usize| {
        let fields: String = (0..count).map(|number| format!("x-{number}: a\r\n")).collect();
        read(Decoder::requests(limits), format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes(), usize::MAX)
    };
    let seen = fields(1_500);
    assert_eq!((seen.heads[0].0.len(), seen.error), (1_504, None));
    assert!(seen.heads[0].0.list_bytes() < 1 << 16);
    assert_eq!(fields(1_800).error, Some(Error::HeadTooLarge), "its header list exceeds the limit");
}

#[test]
fn empty_lines_before_a_request_are_skipped() {
    for lines in ["\r\n", "\r\n\r\n\r\n"] {
        let seen =
            requests(&format!("{lines}GET /a HTTP/1.1\r\nHost: a\r\n\r\n{lines}GET /b HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!((seen.heads.len(), seen.error), (2, None), "{lines:?}");
    }
    assert_eq!(requests("\r\n\r\n").error, None);
    assert_eq!(requests("\r\nGET / HTTP/1.1\r\n").error, Some(Error::Cut));
    assert_eq!(requests("\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").error, Some(Error::Control));
}

#[test]
fn a_reason_phrase_is_carried_if_it_is_not_the_usual_one() {
    for (line, carried, written) in [
        ("HTTP/1.1 200 OK", None, "HTTP/1.1 200 OK"),
        ("HTTP/1.1 200 All Is Fine", Some("All Is Fine"), "HTTP/1.1 200 All Is Fine"),
        ("HTTP/1.1 299 Odd", Some("Odd"), "HTTP/1.1 299 Odd"),
        ("HTTP/1.1 299 ", None, "HTTP/1.1 299 "),
        ("HTTP/1.1 404", Some(""), "HTTP/1.1 404 "),
    ] {
        let seen = responses(MethodKind::Other, &format!("{line}\r\nx-weft-reason: lie\r\nContent-Length: 0\r\n\r\n"));
        let head = &seen.heads[0].0;
        assert_eq!(head.get(REASON), carried.map(str::as_bytes), "{line}");
        let (mut encoder, mut out) = (Encoder::new(), Vec::new());
        encoder.response(&mut out, head, true, ASKED, true).expect("it can be written");
        assert_eq!(String::from_utf8_lossy(&out), format!("{written}\r\ncontent-length: 0\r\n\r\n"));
    }
    // Interim responses and tunnels have reason phrases, too.
    for (to, line) in [(MethodKind::Other, "HTTP/1.1 103 Hints"), (MethodKind::Connect, "HTTP/1.1 201 Connected")] {
        let seen = responses(to, &format!("{line}\r\n\r\n"));
        let (mut encoder, mut out) = (Encoder::new(), Vec::new());
        encoder.response(&mut out, &seen.heads[0].0, false, Request { method: to, ..ASKED }, true).expect("it can be");
        assert!(out.starts_with(line.as_bytes()), "{}", out.escape_ascii());
    }
}

#[test]
fn left_is_known_if_the_body_has_a_length() {
    let mut decoder = Decoder::requests(LIMITS);
    let mut input = &b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe"[..];
    assert_eq!(decoder.left(), Some(0));
    decoder.receive(&mut input).expect("a head");
    assert_eq!(decoder.left(), Some(5));
    decoder.receive(&mut input).expect("a part");
    assert_eq!(decoder.left(), Some(3));
    let mut decoder = Decoder::requests(LIMITS);
    decoder.receive(&mut &b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"[..]).expect("a head");
    assert_eq!(decoder.left(), None);
}
