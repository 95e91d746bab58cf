//! Checks whether a message is well-formed (RFC 9113 sections 8.1 to 8.3 and 8.5, RFC 8441 section 4). The decoder has
//! already checked names, values and the order of pseudo-headers.

use crate::headers::{Headers, Name};

/// A message is malformed: its stream is reset with PROTOCOL_ERROR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The kinds of fields that these checks need, as bits.
mod class {
    pub(super) const STATUS: u8 = 1;
    pub(super) const REQUEST: u8 = 2;
    pub(super) const CONNECTION: u8 = 4;
    pub(super) const TE: u8 = 8;
    pub(super) const LENGTH: u8 = 16;
    pub(super) const HOST: u8 = 32;
}

/// The kind of each known name; 0 for most.
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    classes[Name::STATUS.id() as usize] = class::STATUS;
    classes[Name::METHOD.id() as usize] = class::REQUEST;
    classes[Name::SCHEME.id() as usize] = class::REQUEST;
    classes[Name::AUTHORITY.id() as usize] = class::REQUEST;
    classes[Name::PATH.id() as usize] = class::REQUEST;
    classes[Name::PROTOCOL.id() as usize] = class::REQUEST;
    // Section 8.2.2: HTTP/2 messages have no connection-specific fields.
    classes[Name::CONNECTION.id() as usize] = class::CONNECTION;
    classes[Name::KEEP_ALIVE.id() as usize] = class::CONNECTION;
    classes[Name::PROXY_CONNECTION.id() as usize] = class::CONNECTION;
    classes[Name::TRANSFER_ENCODING.id() as usize] = class::CONNECTION;
    classes[Name::UPGRADE.id() as usize] = class::CONNECTION;
    classes[Name::TE.id() as usize] = class::TE;
    classes[Name::CONTENT_LENGTH.id() as usize] = class::LENGTH;
    classes[Name::HOST.id() as usize] = class::HOST;
    classes
};

/// What was found in a list.
struct Found {
    classes: u8,
    length: Option<u64>,
}

/// Looks at each field once, which costs less than one search for each field of interest.
#[inline]
fn look_through(headers: &Headers) -> Result<Found, Malformed> {
    let mut found = Found { classes: 0, length: None };
    for field in headers.raw() {
        let class = CLASSES[usize::from(field.id)];
        found.classes |= class;
        let is_fine = match class {
            class::CONNECTION => false,
            class::TE => headers.value(field).eq_ignore_ascii_case(b"trailers"),
            class::LENGTH => {
                let said = number(headers.value(field)).ok_or(Malformed)?;
                // Several fields may say the same (RFC 9110 section 8.6).
                *found.length.get_or_insert(said) == said
            }
            _ => true,
        };
        if !is_fine {
            return Err(Malformed);
        }
    }
    Ok(found)
}

/// Checks a request's header section, and returns its content-length.
pub(super) fn check_request(headers: &Headers, is_protocol_allowed: bool) -> Result<Option<u64>, Malformed> {
    let method = headers.method().ok_or(Malformed)?;
    let is_target_whole = if let Some(protocol) = headers.protocol() {
        is_protocol_allowed
            && method == b"CONNECT"
            && is_token(protocol)
            && is_origin_form(headers, method)
            && headers.authority().is_some_and(is_authority)
    } else if method == b"CONNECT" {
        headers.scheme().is_none() && headers.path().is_none() && headers.authority().is_some_and(is_authority)
    } else {
        is_token(method) && is_origin_form(headers, method) && headers.authority().is_none_or(is_authority)
    };
    let found = look_through(headers)?;
    let is_host_fine = found.classes & class::HOST == 0 || is_host_of(headers);
    if found.classes & class::STATUS == 0 && is_target_whole && is_host_fine {
        Ok(found.length)
    } else {
        Err(Malformed)
    }
}

/// Whether `host` names the same authority as `:authority` (section 8.3.1): if they differed, two programs could read
/// the same request differently. Without `:authority`, `host` takes its place, and only one is allowed (RFC 9110
/// section 7.2).
#[cold]
fn is_host_of(headers: &Headers) -> bool {
    let Some(host) = headers.get_single(Name::HOST) else { return false };
    let default_port: &[u8] = if headers.scheme() == Some(b"https") { b":443" } else { b":80" };
    let plain = |authority| <[u8]>::strip_suffix(authority, default_port).unwrap_or(authority);
    match headers.authority() {
        Some(authority) => plain(authority).eq_ignore_ascii_case(plain(host)),
        None => is_authority(host),
    }
}

fn is_origin_form(headers: &Headers, method: &[u8]) -> bool {
    let (Some(scheme), Some(path)) = (headers.scheme(), headers.path()) else { return false };
    let is_path = match scheme {
        b"http" | b"https" => path.starts_with(b"/") || (path == b"*" && method == b"OPTIONS"),
        _ => is_scheme(scheme),
    };
    is_path && is_uri_text(path, b"#")
}

/// RFC 3986 section 3.1
fn is_scheme(scheme: &[u8]) -> bool {
    !scheme.is_empty() && scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
}

/// Section 8.3.1 forbids the deprecated userinfo (`@`). The other three characters end an authority (RFC 3986 section
/// 3.2).
fn is_authority(authority: &[u8]) -> bool {
    is_uri_text(authority, b"@/?#")
}

/// Whether a part of a URI is visible ASCII (RFC 3986 section 2) without the characters that would start the next part.
/// A relay must check this: some servers close the connection, and so end everyone's calls on it, when they cannot
/// parse a path.
#[inline(always)]
fn is_uri_text<const N: usize>(text: &[u8], without: &[u8; N]) -> bool {
    // Eight bytes at a time: nearly every path and authority is longer, and each request has both.
    let Some(last) = text.last_chunk::<8>() else {
        return text.iter().all(|byte| byte.is_ascii_graphic() && !without.contains(byte));
    };
    let mut wrong = wrong_in(*last, without);
    for chunk in text.as_chunks::<8>().0 {
        wrong |= wrong_in(*chunk, without);
    }
    wrong == 0
}

/// Not 0 when one of the bytes is not visible ASCII, or is one of `without`. Such a byte sets its high bit in one of
/// the terms. A carry into the next byte cannot hide a wrong byte, and occurs only when there is one.
#[inline(always)]
fn wrong_in<const N: usize>(bytes: [u8; 8], without: &[u8; N]) -> u64 {
    const fn each(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    let word = u64::from_le_bytes(bytes);
    let below = word.wrapping_sub(each(b'!')) & !word;
    let above = word | word.wrapping_add(each(1));
    let mut wrong = below | above;
    for byte in without {
        let same = word ^ each(*byte);
        wrong |= same.wrapping_sub(each(1)) & !same;
    }
    wrong & each(0x80)
}

#[inline]
fn is_token(method: &[u8]) -> bool {
    method == b"POST" || method == b"GET" || is_other_token(method)
}

fn is_other_token(method: &[u8]) -> bool {
    !method.is_empty() && method.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// Checks a response's header section, and returns its status and content-length.
pub(super) fn check_response(headers: &Headers) -> Result<(u16, Option<u64>), Malformed> {
    let status = headers.status().ok_or(Malformed)?;
    let found = look_through(headers)?;
    // Section 8.6: HTTP/2 has no upgrade.
    if status == 101 || found.classes & class::REQUEST != 0 { Err(Malformed) } else { Ok((status, found.length)) }
}

/// Checks trailers, which have no pseudo-headers.
#[inline]
pub(super) fn check_trailers(headers: &Headers) -> Result<(), Malformed> {
    let found = look_through(headers)?;
    if found.classes & (class::STATUS | class::REQUEST) != 0 { Err(Malformed) } else { Ok(()) }
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    // `u64::MAX` is `ANY_LENGTH`, so it cannot be a length.
    digits
        .iter()
        .try_fold(0u64, |sum, digit| {
            digit.is_ascii_digit().then_some(())?;
            sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
        })
        .filter(|sum| *sum < u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(fields: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in fields {
            headers.append_bytes(name.as_bytes(), value.as_bytes());
        }
        headers
    }

    const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];

    fn get_with(field: (&'static str, &'static str)) -> Result<Option<u64>, Malformed> {
        let mut fields: Vec<_> = GET.into_iter().filter(|(name, _)| *name != field.0).collect();
        fields.push(field);
        check_request(&list(&fields), false)
    }

    #[test]
    fn requests_need_their_pseudo_headers() {
        assert_eq!(check_request(&list(&GET), false), Ok(None));
        for (missing, _) in &GET[..3] {
            let fields: Vec<_> = GET.into_iter().filter(|(name, _)| name != missing).collect();
            assert_eq!(check_request(&list(&fields), false), Err(Malformed), "without {missing}");
        }
        let malformed = [
            (":status", "200"),
            (":path", ""),
            (":path", "*"),
            (":path", "x"),
            (":path", "/a b"),
            (":path", "/\u{e4}"),
            (":path", "/a#b"),
            (":authority", "a/b"),
            (":authority", "a?b"),
            (":authority", "a#b"),
            (":authority", "\u{e4}"),
            (":scheme", ""),
            (":scheme", "h\u{e4}"),
            (":method", ""),
            (":method", "A B"),
            (":authority", "user@a"),
            (":protocol", "websocket"),
        ];
        for field in malformed {
            assert_eq!(get_with(field), Err(Malformed), "{field:?}");
        }
        assert_eq!(
            check_request(&list(&[(":method", "OPTIONS"), (":scheme", "http"), (":path", "*")]), false),
            Ok(None)
        );
    }

    #[test]
    fn a_host_is_the_authority_or_takes_its_place() {
        for (authority, host, is_fine) in [
            (Some("a"), &["a"][..], true),
            (Some("users.shop"), &["Users.Shop"], true),
            (Some("a"), &["a:80"], true),
            (Some("a:80"), &["a"], true),
            (Some("a:81"), &["a"], false),
            (Some("a"), &["b"], false),
            (Some("a"), &["a", "b"], false),
            (Some("a"), &["a", "a"], false),
            (Some("a"), &[""], false),
            (None, &["a:8080"], true),
            (None, &["a", "b"], false),
            (None, &["user@a"], false),
            (None, &["a/b"], false),
        ] {
            let mut fields = vec![(":method", "GET"), (":scheme", "http"), (":path", "/")];
            fields.extend(authority.map(|authority| (":authority", authority)));
            fields.extend(host.iter().map(|host| ("host", *host)));
            assert_eq!(check_request(&list(&fields), false).is_ok(), is_fine, "{authority:?} {host:?}");
        }
    }

    #[test]
    fn connect_needs_an_authority_and_extended_connect_all_pseudo_headers() {
        let plain = [(":method", "CONNECT"), (":authority", "a:1")];
        assert_eq!(check_request(&list(&plain), false), Ok(None));
        assert_eq!(check_request(&list(&plain[..1]), false), Err(Malformed));
        let mut extended = plain.to_vec();
        extended.extend([(":scheme", "https"), (":path", "/")]);
        assert_eq!(check_request(&list(&extended), true), Err(Malformed));
        extended.push((":protocol", "websocket"));
        assert_eq!(check_request(&list(&extended), true), Ok(None));
        assert_eq!(check_request(&list(&extended), false), Err(Malformed));
        *extended.last_mut().expect("it has fields") = (":protocol", "web socket");
        assert_eq!(check_request(&list(&extended), true), Err(Malformed));
    }

    #[test]
    fn connection_specific_fields_are_malformed() {
        for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
            assert_eq!(get_with((name, "x")), Err(Malformed));
            assert_eq!(check_trailers(&list(&[(name, "x")])), Err(Malformed));
        }
        assert_eq!(get_with(("te", "trailers")), Ok(None));
        assert_eq!(get_with(("te", "trailers, deflate")), Err(Malformed));
    }

    #[test]
    fn content_lengths_must_be_equal_numbers() {
        assert_eq!(get_with(("content-length", "10")), Ok(Some(10)));
        for value in ["", "-1", "+1", "1,1", "18446744073709551615", "99999999999999999999"] {
            assert_eq!(get_with(("content-length", value)), Err(Malformed), "{value:?}");
        }
        let mut headers = list(&GET);
        headers.append(Name::CONTENT_LENGTH, b"7");
        headers.append(Name::CONTENT_LENGTH, b"7");
        assert_eq!(check_request(&headers, false), Ok(Some(7)));
        headers.append(Name::CONTENT_LENGTH, b"8");
        assert_eq!(check_request(&headers, false), Err(Malformed));
    }

    #[test]
    fn responses_have_a_status_and_no_request_pseudo_headers() {
        assert_eq!(check_response(&list(&[(":status", "200"), ("content-length", "3")])), Ok((200, Some(3))));
        for status in ["", "20", "2000", "abc", "101", "099"] {
            assert_eq!(check_response(&list(&[(":status", status)])), Err(Malformed), "{status:?}");
        }
        assert_eq!(check_response(&list(&[(":status", "200"), (":path", "/")])), Err(Malformed));
        assert_eq!(check_response(&list(&[("x", "y")])), Err(Malformed));
        assert_eq!(check_trailers(&list(&[(":status", "200")])), Err(Malformed));
        assert_eq!(check_trailers(&list(&[("grpc-status", "0")])), Ok(()));
    }

    /// Eight bytes are checked at a time, and the result for each must not depend on the bytes beside it.
    #[test]
    fn every_byte_of_a_uri_is_checked() {
        for byte in 0..=u8::MAX {
            for length in 1..20 {
                for at in 0..length {
                    for other in *b"a!~/" {
                        let mut text = vec![other; length];
                        text[at] = byte;
                        let is_fine = byte.is_ascii_graphic() && byte != b'#';
                        assert_eq!(is_uri_text(&text, b"#"), is_fine, "{text:?}");
                    }
                }
            }
        }
        assert!(is_uri_text(b"", b"#") && !is_uri_text(b"users.shop@:8080", b"@/?#"));
    }
}
