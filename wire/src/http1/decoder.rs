//! Reads the messages of one connection.

use super::encoder::reason;
use super::head::{self, Said};
use super::{DECLINED, Error, Event, Limits, MethodKind, REASON, Request, Response};
use crate::headers::{Headers, Name};

/// How many header lists are kept for reuse. A few are enough, since only one message is read at a time.
const SPARE_LISTS: usize = 2;

/// Reads the messages of one connection, as a server or as a client. Do not use it after an error.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    is_server: bool,
    state: State,
    /// How far an incomplete head has been scanned.
    scanned: usize,
    /// The request whose response is being read.
    expected: Option<Request>,
    spare: Vec<Headers>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    /// This many bytes of the body are still to come.
    Length(u64),
    /// The line before a chunk.
    ChunkLine,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    /// The body ends with the connection.
    ToTheEnd,
    /// A tunnel was requested: it is not known yet whether HTTP or raw bytes follow.
    Held,
    Raw,
}

impl Decoder {
    /// A decoder for a server.
    pub fn requests(limits: Limits) -> Self {
        Self::new(limits, true)
    }

    /// A decoder for a client.
    pub fn responses(limits: Limits) -> Self {
        Self::new(limits, false)
    }

    fn new(limits: Limits, is_server: bool) -> Self {
        Self { limits, is_server, state: State::Head, scanned: 0, expected: None, spare: Vec::new() }
    }

    /// For a client: sets the request whose response is read next. Call it before the response is read.
    pub fn expect(&mut self, request: Request) {
        self.expected = Some(request);
    }

    /// A tunnel has started: all bytes from here on are data.
    pub fn switch_to_raw(&mut self) {
        self.state = State::Raw;
    }

    /// For a server: the requested tunnel was declined, and HTTP follows.
    pub fn stay(&mut self) {
        if self.state == State::Held {
            self.state = State::Head;
        }
    }

    /// How many bytes of the body are still to come; `None` when this is not known, for example with chunks.
    pub fn left(&self) -> Option<u64> {
        match self.state {
            State::Head => Some(0),
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// Takes back the header list of an event, to reuse it.
    pub fn recycle(&mut self, mut headers: Headers) {
        if self.spare.len() < SPARE_LISTS {
            headers.clear();
            headers.shrink();
            self.spare.push(headers);
        }
    }

    /// Whether no incomplete message has been received.
    pub fn is_between_messages(&self) -> bool {
        self.state == State::Head && self.scanned == 0
    }

    /// Takes bytes off the input and returns the next event; `None` when it needs more input. The bytes that are left
    /// in the input must be passed again, in front of the new ones.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn receive<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Error> {
        loop {
            match self.state {
                State::Head => return self.head(input),
                State::Length(left) => return Ok(self.part(input, left, State::Length, true)),
                State::Chunk(left) => return Ok(self.part(input, left, State::Chunk, false)),
                State::ToTheEnd | State::Raw if input.is_empty() => return Ok(None),
                State::ToTheEnd | State::Raw => {
                    return Ok(Some(Event::Data { data: std::mem::take(input), is_end: false }));
                }
                State::Held => return Ok(None),
                State::ChunkLine => {
                    if !self.chunk_line(input)? {
                        return Ok(None);
                    }
                }
                State::ChunkEnd => {
                    match input {
                        [b'\r', b'\n', ..] => *input = &input[2..],
                        [] | [b'\r'] => return Ok(None),
                        _ => return Err(Error::Chunk),
                    }
                    self.state = State::ChunkLine;
                }
                State::Trailers => return self.trailers(input),
            }
        }
    }

    /// The peer has closed its sending side. Returns the end of a body that ends with the connection.
    ///
    /// # Errors
    /// The message is not complete.
    pub fn end(&mut self) -> Result<Option<Event<'static>>, Error> {
        match self.state {
            State::ToTheEnd | State::Raw => {
                self.state = State::Head;
                Ok(Some(Event::Data { data: &[], is_end: true }))
            }
            State::Head if self.scanned == 0 && self.expected.is_none() => Ok(None),
            _ => Err(Error::Cut),
        }
    }

    fn head<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Error> {
        // Old clients send empty lines after a body. A server should ignore at least one (section 2.2); common servers
        // ignore all.
        while self.is_server && input.starts_with(b"\r\n") {
            *input = &input[2..];
            self.scanned = 0;
        }
        if input.is_empty() {
            return Ok(None);
        }
        let Some(end) = head::find_end(input, &mut self.scanned, self.limits.head_bytes)? else { return Ok(None) };
        let (head, rest) = input.split_at(end);
        *input = rest;
        let mut headers = self.spare.pop().unwrap_or_default();
        let event = if self.is_server { self.request(head, &mut headers)? } else { self.response(head, &mut headers)? };
        Ok(Some(match event {
            Head::Request(request, is_end) => Event::Request { headers, request, is_end },
            Head::Response(response, is_end) => Event::Response { headers, is_end, response },
        }))
    }

    fn request(&mut self, text: &[u8], headers: &mut Headers) -> Result<Head, Error> {
        let mut lines = head::lines(text);
        let is_http10 = head::request_line(lines.next().ok_or(Error::RequestLine)?, headers)?;
        let said = head::fields(lines, headers, self.limits.list_bytes)?;
        // HTTP/1.0 has no chunks: a program in front of us may have read this message as one without them (section
        // 6.1).
        if said.is_chunked && is_http10 {
            return Err(Error::TransferEncoding);
        }
        head::check_hosts(&said, is_http10)?;
        let has_body = said.is_chunked || said.length.is_some_and(|length| length > 0);
        let method = head::take_upgrade(&said, is_http10, has_body, headers);
        if method.wants_tunnel() {
            if has_body {
                return Err(Error::Length);
            }
            self.state = State::Held;
        } else {
            self.begin_body(&said, has_body);
        }
        let is_keep_alive = !said.has_close && (!is_http10 || said.has_keep_alive);
        let expects_continue = said.expects_continue && !is_http10 && has_body;
        let request = Request { method, is_http10, is_keep_alive, expects_continue };
        Ok(Head::Request(request, !has_body && !method.wants_tunnel()))
    }

    fn response(&mut self, text: &[u8], headers: &mut Headers) -> Result<Head, Error> {
        let method = self.expected.map_or(MethodKind::Other, |request| request.method);
        let mut lines = head::lines(text);
        let (status, is_http10, phrase) = head::status_line(lines.next().ok_or(Error::StatusLine)?)?;
        headers.set(Name::STATUS, &text[9..12]);
        let said = head::fields(lines, headers, self.limits.list_bytes)?;
        headers.remove(Name::AUTHORITY);
        // A service could set this field itself, but only the status line counts.
        headers.remove(REASON);
        if phrase != reason(status).as_bytes() {
            headers.append(REASON, phrase);
        }
        if status == 101 {
            return self.upgraded(method, headers);
        }
        if status < 200 {
            // An interim response has no body.
            headers.remove(Name::CONTENT_LENGTH);
            return Ok(Head::Response(Response { is_keep_alive: true }, false));
        }
        self.expected = None;
        let is_success = status < 300;
        if matches!(method, MethodKind::Upgrade | MethodKind::Withheld) && is_success {
            headers.set(Name::other(DECLINED), b"declined");
        }
        let is_connected = method == MethodKind::Connect && is_success;
        let is_bare = method == MethodKind::Head || status == 204 || status == 304;
        if status == 204 {
            headers.remove(Name::CONTENT_LENGTH);
        }
        if is_connected {
            // RFC 9110 tells a client to ignore these fields. But a server must not send them here. If it does, it
            // treats CONNECT like any other method, and would read the bytes of the tunnel as its next requests.
            if said.is_chunked || said.length.is_some() || status == 204 || status == 205 {
                return Err(Error::ConnectWithBody);
            }
            self.state = State::Raw;
        } else if is_bare {
            self.state = State::Head;
        } else if said.is_chunked || said.length.is_some() {
            self.begin_body(&said, said.is_chunked || said.length != Some(0));
        } else {
            self.state = State::ToTheEnd;
        }
        let is_keep_alive = !said.has_close && (!is_http10 || said.has_keep_alive) && self.state != State::ToTheEnd;
        Ok(Head::Response(Response { is_keep_alive }, self.state == State::Head))
    }

    fn upgraded(&mut self, method: MethodKind, headers: &mut Headers) -> Result<Head, Error> {
        if method != MethodKind::Upgrade {
            return Err(Error::Upgrade);
        }
        headers.set(Name::STATUS, b"200");
        headers.remove(Name::CONTENT_LENGTH);
        self.expected = None;
        self.state = State::Raw;
        Ok(Head::Response(Response { is_keep_alive: false }, false))
    }

    fn begin_body(&mut self, said: &Said, has_body: bool) {
        self.state = match said.length {
            _ if !has_body => State::Head,
            Some(length) => State::Length(length),
            None => State::ChunkLine,
        };
    }

    /// Returns the next part of a chunk or of a body with Content-Length. `is_last`: the body ends with its last byte.
    fn part<'a>(
        &mut self,
        input: &mut &'a [u8],
        left: u64,
        state: impl Fn(u64) -> State,
        is_last: bool,
    ) -> Option<Event<'a>> {
        if input.is_empty() {
            return None;
        }
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        let (data, rest) = input.split_at(count);
        *input = rest;
        let left = left - count as u64;
        self.state = match (left, is_last) {
            (0, true) => State::Head,
            (0, false) => State::ChunkEnd,
            _ => state(left),
        };
        Some(Event::Data { data, is_end: left == 0 && is_last })
    }

    /// Reads the line before a chunk; `false` when it is not complete.
    fn chunk_line(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        let within = &input[..input.len().min(self.limits.chunk_line_bytes)];
        let Some(end) = within.iter().position(|byte| *byte == b'\n') else {
            return if input.len() >= self.limits.chunk_line_bytes { Err(Error::ChunkTooLarge) } else { Ok(false) };
        };
        let size = chunk_size(&input[..end])?;
        *input = &input[end + 1..];
        self.state = if size == 0 { State::Trailers } else { State::Chunk(size) };
        Ok(true)
    }

    fn trailers<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Error> {
        let end = match head::find_end(input, &mut self.scanned, self.limits.trailer_bytes) {
            Ok(Some(end)) => end,
            Ok(None) => return Ok(None),
            Err(Error::HeadTooLarge) => return Err(Error::ChunkTooLarge),
            Err(e) => return Err(e),
        };
        let (text, rest) = input.split_at(end);
        *input = rest;
        self.state = State::Head;
        let mut headers = self.spare.pop().unwrap_or_default();
        head::fields(head::lines(text), &mut headers, self.limits.list_bytes)?;
        // Fields that frame or route the message are not allowed in trailers (RFC 9110, section 6.5.1).
        for name in [Name::AUTHORITY, Name::CONTENT_LENGTH, Name::EXPECT, Name::TRAILER] {
            headers.remove(name);
        }
        if headers.is_empty() {
            self.recycle(headers);
            return Ok(Some(Event::Data { data: &[], is_end: true }));
        }
        Ok(Some(Event::Trailers(headers)))
    }
}

/// A decoded head, without its fields.
enum Head {
    Request(Request, bool),
    Response(Response, bool),
}

/// The size in the line before a chunk (up to its CR): digits, and maybe an extension, which is ignored.
fn chunk_size(line: &[u8]) -> Result<u64, Error> {
    let line = line.strip_suffix(b"\r").ok_or(Error::Chunk)?;
    let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let (size, extension) = line.split_at(digits);
    let is_clean = extension.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f));
    if size.is_empty() || size.len() > 15 || !is_clean || !matches!(extension, [] | [b';', ..]) {
        return Err(Error::Chunk);
    }
    let digit = |byte: &u8| u64::from(char::from(*byte).to_digit(16).unwrap_or_default());
    Ok(size.iter().fold(0, |sum, byte| sum * 16 + digit(byte)))
}
