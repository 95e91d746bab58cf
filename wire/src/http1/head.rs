//! Finds and parses heads and trailer sections.

use super::{Error, MethodKind};
use crate::headers::{Headers, Name};

/// The end of the head at the start of `input`, after its empty line; `None` if the head is not complete. `scanned` is
/// how far earlier calls have searched.
pub(super) fn find_end(input: &[u8], scanned: &mut usize, limit: usize) -> Result<Option<usize>, Error> {
    let mut at = *scanned;
    // Nothing beyond the limit is read, so that the result does not depend on how much has been received.
    let within = input.len().min(limit);
    while let Some(found) = input[at.min(within)..within].iter().position(|byte| is_control(*byte)) {
        at += found;
        match (input[at], input.get(at + 1)) {
            (b'\t', _) => at += 1,
            (b'\r', Some(b'\n')) => {
                at += 2;
                if at > limit {
                    return Err(Error::HeadTooLarge);
                }
                // The line is empty.
                if input[..at].ends_with(b"\r\n\r\n") || at == 2 {
                    *scanned = 0;
                    return Ok(Some(at));
                }
            }
            (b'\r', None) => {
                *scanned = at;
                return Ok(None);
            }
            _ => return Err(Error::Control),
        }
    }
    *scanned = within;
    if input.len() > limit { Err(Error::HeadTooLarge) } else { Ok(None) }
}

fn is_control(byte: u8) -> bool {
    byte < b' ' || byte == 0x7f
}

/// The lines of a head, without line ends and without the empty line at the end.
pub(super) fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    let mut rest = head;
    std::iter::from_fn(move || {
        let end = rest.iter().position(|byte| *byte == b'\r')?;
        let line = &rest[..end];
        rest = &rest[end + 2..];
        (!line.is_empty()).then_some(line)
    })
}

/// What a head says about its message and connection, besides the fields that are passed on.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) length: Option<u64>,
    pub(super) is_chunked: bool,
    pub(super) has_close: bool,
    pub(super) has_keep_alive: bool,
    pub(super) hosts: usize,
    /// The protocol to upgrade to, if `Connection` has the option `upgrade`.
    pub(super) upgrade: Option<Vec<u8>>,
    pub(super) expects_continue: bool,
    wants_upgrade: bool,
    upgrades: usize,
}

/// The most options in all `Connection` fields of a head. Their number is bounded, because each costs a search through
/// all fields.
const CONNECTION_OPTIONS: usize = 64;

/// Reads fields into a list of at most `limit` bytes, without the connection-specific ones.
pub(super) fn fields<'a>(
    lines: impl Iterator<Item = &'a [u8]> + Clone,
    headers: &mut Headers,
    limit: usize,
) -> Result<Said, Error> {
    let mut said = Said::default();
    let mut name = [0; 256];
    for line in lines.clone() {
        let (written, value) = field(line)?;
        let name = name.get_mut(..written.len()).ok_or(Error::HeadTooLarge)?;
        name.copy_from_slice(written);
        name.make_ascii_lowercase();
        said.take(name, value, headers)?;
        if headers.list_bytes() > limit {
            return Err(Error::HeadTooLarge);
        }
    }
    said.check()?;
    // The fields that `Connection` names are removed, too, whether they come before or after it.
    let mut options = 0;
    for line in lines {
        let (written, value) = field(line)?;
        if written.eq_ignore_ascii_case(b"connection") {
            for named in tokens(value) {
                options += 1;
                if options > CONNECTION_OPTIONS {
                    return Err(Error::HeadTooLarge);
                }
                if may_be_named(named) {
                    headers.remove_text(named);
                }
            }
        }
    }
    Ok(said)
}

/// Whether `Connection` may name this field as connection-specific. Fields that frame or route a message, or hold
/// credentials, are never so.
fn may_be_named(name: &[u8]) -> bool {
    const NEVER: [&[u8]; 4] = [b"content-length", b"host", b"authorization", b"cookie"];
    !name.starts_with(b":") && !NEVER.iter().any(|never| name.eq_ignore_ascii_case(never))
}

fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or(Error::Field)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err(Error::Field);
    }
    Ok((name, value.trim_ascii()))
}

/// RFC 9110, section 5.6.2
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The members of a list.
fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

impl Said {
    fn take(&mut self, name: &[u8], value: &[u8], headers: &mut Headers) -> Result<(), Error> {
        match name {
            b"connection" => {
                for option in tokens(value) {
                    self.has_close |= option.eq_ignore_ascii_case(b"close");
                    self.has_keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    self.wants_upgrade |= option.eq_ignore_ascii_case(b"upgrade");
                }
            }
            b"upgrade" => {
                self.upgrades += 1;
                self.upgrade = Some(value.to_vec());
            }
            b"transfer-encoding" => self.coding(value)?,
            b"keep-alive" | b"proxy-connection" | b"te" | b"http2-settings" => {}
            b"content-length" => {
                let length = number(value).ok_or(Error::Length)?;
                if self.length.replace(length).is_some() {
                    return Err(Error::Length);
                }
                headers.append(Name::CONTENT_LENGTH, value);
            }
            b"host" => {
                self.hosts += 1;
                if !is_authority(value) {
                    return Err(Error::Host);
                }
                // The authority of an absolute-form target takes precedence (section 3.2.2).
                if !value.is_empty() && headers.authority().is_none() {
                    headers.set(Name::AUTHORITY, value);
                }
            }
            b"expect" => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Error::Expectation);
                }
                self.expects_continue = true;
                headers.append_bytes(name, value);
            }
            _ => headers.append_bytes(name, value),
        }
        Ok(())
    }

    fn coding(&mut self, value: &[u8]) -> Result<(), Error> {
        for coding in tokens(value) {
            if self.is_chunked {
                return Err(Error::TransferEncoding);
            }
            if !coding.eq_ignore_ascii_case(b"chunked") {
                return Err(Error::TransferCoding);
            }
            self.is_chunked = true;
        }
        if self.is_chunked { Ok(()) } else { Err(Error::TransferEncoding) }
    }

    fn check(&mut self) -> Result<(), Error> {
        if self.is_chunked && self.length.is_some() {
            return Err(Error::TwoLengths);
        }
        let is_one = self.upgrades == 1 && self.wants_upgrade;
        self.upgrade = self.upgrade.take().filter(|protocol| {
            // A request to upgrade to HTTP/2 or TLS is ignored and served as HTTP/1.1: no server has to upgrade (RFC
            // 9110, section 7.8), and the upgrade to HTTP/2 is obsolete (RFC 9113, section 3.1).
            is_one
                && !protocol.is_empty()
                && protocol.iter().all(|byte| is_token(*byte))
                && !super::is_http_within(protocol)
        });
        Ok(())
    }
}

/// A Content-Length: digits only, and few enough not to overflow.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// Reads a request line into pseudo-headers. Returns whether the version is HTTP/1.0.
pub(super) fn request_line(line: &[u8], headers: &mut Headers) -> Result<bool, Error> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Error::RequestLine);
    };
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) {
        return Err(Error::RequestLine);
    }
    let is_http10 = is_http10(version)?;
    headers.set(Name::METHOD, method);
    if method == b"CONNECT" {
        if !is_authority(target) || !has_port(target) {
            return Err(Error::Target);
        }
        headers.set(Name::AUTHORITY, target);
        return Ok(is_http10);
    }
    let (authority, path) = split_target(target)?;
    let is_asterisk = path == b"*";
    if !is_path(path) || (is_asterisk && method != b"OPTIONS") {
        return Err(Error::Target);
    }
    headers.set(Name::SCHEME, b"http");
    headers.set(Name::PATH, path);
    if let Some(authority) = authority {
        headers.set(Name::AUTHORITY, authority);
    }
    Ok(is_http10)
}

fn is_http10(version: &[u8]) -> Result<bool, Error> {
    match version {
        b"HTTP/1.1" => Ok(false),
        b"HTTP/1.0" => Ok(true),
        [b'H', b'T', b'T', b'P', b'/', a, b'.', b] if a.is_ascii_digit() && b.is_ascii_digit() => Err(Error::Version),
        _ => Err(Error::RequestLine),
    }
}

/// The authority of an absolute-form, and the path with its query.
fn split_target(target: &[u8]) -> Result<(Option<&[u8]>, &[u8]), Error> {
    if target.starts_with(b"/") || target == b"*" {
        return Ok((None, target));
    }
    let after = |scheme: &[u8]| {
        let (begin, rest) = target.split_at_checked(scheme.len())?;
        begin.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    let rest = after(b"http://").or_else(|| after(b"https://")).ok_or(Error::Target)?;
    let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || !is_authority(authority) {
        return Err(Error::Target);
    }
    Ok((Some(authority), if path.is_empty() { b"/" } else { path }))
}

fn is_path(path: &[u8]) -> bool {
    path == b"*" || (path.starts_with(b"/") && path.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#'))
}

/// Whether this is a host with or without a port, and has no other part of a URI.
fn is_authority(text: &[u8]) -> bool {
    text.iter().all(|byte| byte.is_ascii_graphic() && !b"/?#@\\,<>\"".contains(byte))
}

fn has_port(authority: &[u8]) -> bool {
    let colon = authority.iter().rposition(|byte| *byte == b':');
    colon.is_some_and(|at| at > 0 && at + 1 < authority.len() && authority[at + 1..].iter().all(u8::is_ascii_digit))
}

/// Checks that a request has exactly one Host; HTTP/1.0 may have none.
pub(super) fn check_hosts(said: &Said, is_http10: bool) -> Result<(), Error> {
    if said.hosts > 1 || (said.hosts == 0 && !is_http10) { Err(Error::Host) } else { Ok(()) }
}

/// Turns a head that asks for an upgrade into an extended CONNECT, if that is possible.
pub(super) fn take_upgrade(said: &Said, is_http10: bool, has_body: bool, headers: &mut Headers) -> MethodKind {
    if let Some(protocol) = &said.upgrade
        && headers.method() == Some(b"GET")
        && !is_http10
        && !has_body
        && headers.authority().is_some()
    {
        headers.set(Name::METHOD, b"CONNECT");
        headers.set(Name::PROTOCOL, protocol);
        // A client must not be able to mark its upgrade as declined.
        headers.remove(Name::other(super::DECLINED));
    }
    MethodKind::of(headers)
}

/// Reads a status line. Returns the status, whether the version is HTTP/1.0, and the reason phrase.
pub(super) fn status_line(line: &[u8]) -> Result<(u16, bool, &[u8]), Error> {
    let (version, rest) = line.split_at_checked(8).ok_or(Error::StatusLine)?;
    let is_http10 = is_http10(version).map_err(|_| Error::StatusLine)?;
    match rest {
        [b' ', a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => Ok((number_of(a, b, c), is_http10, b"")),
        [b' ', a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', b' ', phrase @ ..] => {
            Ok((number_of(a, b, c), is_http10, phrase.trim_ascii()))
        }
        _ => Err(Error::StatusLine),
    }
}

fn number_of(a: &u8, b: &u8, c: &u8) -> u16 {
    [a, b, c].into_iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'))
}
