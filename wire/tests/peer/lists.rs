//! Header lists: of requests, of responses, and some that break the rules.

use super::blocks::List;
use super::choices::Choices;
use super::script::{HEADER_LIST_BYTES, Role};

fn field(name: &str, value: &str) -> (Vec<u8>, Vec<u8>) {
    (name.as_bytes().to_vec(), value.as_bytes().to_vec())
}

/// A field that any message may have.
pub fn extra(choices: &mut Choices) -> (Vec<u8>, Vec<u8>) {
    let (name, value) = choices.pick(&[
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("cookie", "a=b"),
        ("cookie", "c=d"),
        ("x-request-id", "1234"),
        ("custom-key", "custom-value"),
        ("accept-encoding", "gzip, deflate"),
        ("user-agent", "script"),
        ("grpc-timeout", "1S"),
        ("authorization", "private"),
        ("cache-control", "no-cache"),
        ("x-empty", ""),
        ("x-tab", "a\tb"),
    ]);
    if choices.one_in(10) {
        return (name.into(), vec![b'a'; choices.below(900)]);
    }
    field(name, value)
}

/// A well-formed request.
pub fn request(choices: &mut Choices) -> List {
    let method = choices.pick(&["POST", "GET", "POST", "HEAD", "OPTIONS", "PUT"]);
    let path = choices.pick(&["/", "/index.html", "/shop.users.v1.Users/Get", "/a?b=c&d=%20"]);
    let mut list = vec![field(":method", method), field(":scheme", choices.pick(&["http", "https"]))];
    if !choices.one_in(8) {
        list.push(field(":authority", choices.pick(&["www.example.com", "users:80", "[::1]:80"])));
    }
    list.push(field(":path", path));
    if choices.one_in(3) {
        // Pseudo-headers come in any order.
        list.rotate_left(1);
    }
    for _ in 0..choices.below(5) {
        list.push(extra(choices));
    }
    list
}

/// A well-formed response, except that its status may be 101.
pub fn response(choices: &mut Choices) -> List {
    let mut list =
        vec![field(":status", choices.pick(&["200", "200", "204", "304", "404", "302", "100", "103", "101"]))];
    for _ in 0..choices.below(5) {
        list.push(extra(choices));
    }
    list
}

/// Breaks a rule for header lists (RFC 9113, section 8), or comes close to it.
pub fn spoil(list: &mut List, role: Role, choices: &mut Choices) {
    let at = choices.below(list.len());
    match choices.below(26) {
        0 => list[at].0.make_ascii_uppercase(),
        1 => drop(list.remove(at)),
        2 => list.insert(at, list[at].clone()),
        3 => list.rotate_left(at),
        4 => list.push(field(":path", "/late")),
        5 => list.insert(0, field(":unknown", "x")),
        6 => list.push(field("connection", "close")),
        7 => list.push(field("te", "gzip")),
        8 => list.push(field("transfer-encoding", "chunked")),
        9 => list.push(field("upgrade", "h2c")),
        10 => list.push(field("keep-alive", "1")),
        11 => list.push(field("proxy-connection", "close")),
        12 => list[at].1 = b"a\r\nb".to_vec(),
        13 => list[at].1 = b"a\0b".to_vec(),
        14 => list[at].1.clear(),
        15 => list[at].0.clear(),
        16 => list[at].0.push(choices.pick(b" \r:(\x7f\x80")),
        17 => list[at].1 = choices.pick(&[b" a".as_slice(), b"a ", b"\xc3\xa4", b"a\x7f"]).to_vec(),
        18 => {
            let size: usize = list.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
            let bytes = match choices.below(4) {
                // The whole list has exactly the largest allowed size, or one byte more.
                0 => HEADER_LIST_BYTES - (size + 37).min(HEADER_LIST_BYTES) + choices.below(2),
                _ => choices.between(HEADER_LIST_BYTES - 300, HEADER_LIST_BYTES + 300),
            };
            list.push((b"x-big".to_vec(), vec![b'b'; bytes]));
        }
        19 => list.extend((0..choices.between(80, 110)).map(|at| field("x-many", &at.to_string()))),
        20 => list.push(field(
            "content-length",
            choices.pick(&["+5", "5, 5", "-1", "", "99999999999999999999", "0x5", "007"]),
        )),
        21 => list.extend([field("content-length", "5"), field("content-length", choices.pick(&["5", "6"]))]),
        22 => {
            list.retain(|(name, _)| name != b":method");
            list.insert(0, field(":method", "CONNECT"));
            if choices.one_in(2) {
                list.retain(|(name, _)| name != b":scheme" && name != b":path");
            } else if choices.one_in(2) {
                list.insert(0, field(":protocol", "websocket"));
            }
        }
        23 => list.insert(0, field(":protocol", "websocket")),
        24 => match role {
            Role::Server => list.insert(0, field(":status", "200")),
            Role::Client => list.insert(0, field(":method", "GET")),
        },
        _ => {
            let (name, values): (_, &[&str]) = match role {
                Role::Server => (b":path".to_vec(), &["*", "no-slash", "/a#b", "/ a", "//"]),
                Role::Client => (b":status".to_vec(), &["20", "2000", "abc", "099", "600", "-20", "+20"]),
            };
            if let Some((_, value)) = list.iter_mut().find(|(n, _)| *n == name) {
                *value = choices.pick(values).as_bytes().to_vec();
            }
        }
    }
}
