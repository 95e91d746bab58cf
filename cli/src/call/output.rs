//! What is printed besides the answers: headers if they are asked for, and errors with all their details.
//!
//! A service has written nearly all of it, so nothing goes to the terminal as it came.

use std::{borrow::Cow, fmt::Write};

use prost::Message;
use tonic::{
    Status,
    metadata::{KeyAndValueRef, MetadataMap},
};
use tonic_types::pb;
use weft_mesh::{
    names::header,
    reflection::{Method, Reflection},
};

use super::{schema::Messages, status_name};
use crate::{console::note, terminal};

/// Before the further lines of a message, so that none of them looks like a line of weft's own.
const INDENT: &str = "    ";

/// How things are shown.
pub(super) struct Printer {
    pub(super) is_compact: bool,
    pub(super) is_verbose: bool,
}

impl Printer {
    pub(super) fn request(&self, method: &Method, headers: &MetadataMap) {
        if self.is_verbose {
            note(format_args!("calling {}", terminal::line(method.path.as_str())));
        }
        self.headers("with the headers", headers);
    }

    pub(super) fn headers(&self, what: &str, headers: &MetadataMap) {
        if self.is_verbose {
            note(headers_text(what, headers).trim_end());
        }
    }

    /// An answer that is an error.
    pub(super) fn status(&self, status: &Status, messages: &Messages) {
        self.headers("ended with the trailers", status.metadata());
        note(self.status_text(status, messages).trim_end());
    }

    fn status_text(&self, status: &Status, messages: &Messages) -> String {
        let message = match status.message() {
            "" => "it has no message".to_owned(),
            message => terminal::lines(message).replace('\n', &format!("\n{INDENT}")),
        };
        let mut text = format!("error: {}: {message}\n", status_name(status.code()));
        // Writing to a string never fails.
        if let Some(reason) = status.metadata().get(header::ERROR) {
            let reason = terminal::line(reason.to_str().unwrap_or("?"));
            let _ = writeln!(text, "this error comes from the mesh, not from the service: {}: {reason}", header::ERROR);
        }
        for any in any_details(status) {
            let (name, bytes) = (type_name(&any), any.value.len());
            let shown = terminal::line(name);
            let _ = match messages.to_json(name, &any.value, !self.is_compact) {
                Ok(json) => writeln!(text, "{shown} {json}"),
                Err(_) => writeln!(text, "{shown}: {bytes} bytes of a type that the mesh does not know"),
            };
        }
        text
    }
}

fn headers_text(what: &str, headers: &MetadataMap) -> String {
    let mut text = format!("{what}\n");
    for entry in headers.iter() {
        let (key, value) = match &entry {
            KeyAndValueRef::Ascii(key, value) => (key.as_str(), Cow::from(value.to_str().unwrap_or("(not ASCII)"))),
            KeyAndValueRef::Binary(key, value) => (key.as_str(), String::from_utf8_lossy(value.as_encoded_bytes())),
        };
        let _ = writeln!(text, "  {}: {}", terminal::line(key), terminal::line(&value));
    }
    text
}

/// Says that an answer does not come from the service, if so.
pub(super) fn tell_fallback(headers: &MetadataMap) {
    if let Some(fallback) = headers.get(header::FALLBACK) {
        let fallback = terminal::line(fallback.to_str().unwrap_or("?"));
        note(format_args!("this answer comes from a fallback, not from the service: {}: {fallback}", header::FALLBACK));
    }
}

fn any_details(status: &Status) -> Vec<prost_types::Any> {
    pb::Status::decode(status.details()).map(|status| status.details).unwrap_or_default()
}

fn type_name(any: &prost_types::Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or(&any.type_url)
}

/// The message types of a status's details: `google.rpc.*`, and those that the mesh knows.
/// `None` if there are no details.
pub(super) async fn details(status: &Status, reflection: &mut Reflection) -> Option<Messages> {
    let details = any_details(status);
    if details.is_empty() {
        return None;
    }
    reflection.add(pb::FILE_DESCRIPTOR_SET);
    for any in &details {
        if !type_name(any).starts_with("google.rpc.") {
            // A service may send types that the mesh does not know: then only their size is printed.
            let _ = reflection.fetch_symbol(type_name(any)).await;
        }
    }
    Messages::new(&reflection.descriptor_set()).ok()
}

#[cfg(test)]
mod tests {
    use tonic::{Code, metadata::MetadataValue};
    use weft_mesh::names::acts_on_terminal;

    use super::*;

    const HOSTILE: &str = "\x1b[2J\x07\u{9b}2J";
    const ESCAPED: &str = r"\u{1b}[2J\u{7}\u{9b}2J";

    fn is_harmless(text: &str) -> bool {
        !text.chars().any(|c| c != '\n' && acts_on_terminal(c))
    }

    #[test]
    fn an_error_does_not_act_on_the_terminal() {
        let detail = |type_url: &str, value: Vec<u8>| prost_types::Any { type_url: type_url.to_owned(), value };
        let info = pb::ErrorInfo { reason: HOSTILE.to_owned(), ..Default::default() };
        let details = vec![
            detail(&format!("type.googleapis.com/{HOSTILE}"), vec![1, 2, 3]),
            detail("type.googleapis.com/google.rpc.ErrorInfo", info.encode_to_vec()),
        ];
        let status = pb::Status { details, ..Default::default() };
        let message = format!("no such user{HOSTILE}\nerror: OK: all is well");
        let status = Status::with_details(Code::NotFound, message, status.encode_to_vec().into());
        let printer = Printer { is_compact: true, is_verbose: false };
        let messages = Messages::new(pb::FILE_DESCRIPTOR_SET).expect("they are valid");
        let text = printer.status_text(&status, &messages);
        let lines: Vec<&str> = text.lines().collect();
        assert!(is_harmless(&text), "{text:?}");
        assert_eq!(lines[0], format!("error: NOT_FOUND: no such user{ESCAPED}"));
        assert_eq!(lines[1], "    error: OK: all is well");
        assert_eq!(lines[2], format!("{ESCAPED}: 3 bytes of a type that the mesh does not know"));
        assert_eq!(lines[3], r#"google.rpc.ErrorInfo {"reason":"\u001b[2J\u0007\u009b2J"}"#);
    }

    #[test]
    fn headers_do_not_act_on_the_terminal() {
        let mut headers = MetadataMap::new();
        headers.insert("x-plain", "a".parse().expect("it is ASCII"));
        let hostile =
            tonic::codegen::http::HeaderValue::from_bytes("\u{9b}2J".as_bytes()).expect("not ASCII, but allowed");
        headers.as_mut().insert("x-some-bin", hostile);
        headers.insert_bin("x-good-bin", MetadataValue::from_bytes(b"ab"));
        let text = headers_text("answered with the headers", &headers);
        assert!(is_harmless(&text), "{text:?}");
        assert!(text.starts_with("answered with the headers\n"), "{text}");
        assert!(text.contains("\n  x-plain: a\n") && text.contains("\n  x-some-bin: \\u{9b}2J\n"), "{text}");
    }
}
