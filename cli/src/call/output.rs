//! What is printed besides the answers: headers if they are asked for, and errors with all their details.

use prost::Message;
use tonic::{
    Status,
    metadata::{KeyAndValueRef, MetadataMap},
};
use tonic_types::pb;
use weft_mesh::names::header;

use super::{schema::Messages, status_name};
use crate::{
    console::note,
    reflection::{Method, Reflection},
};

/// How things are shown.
pub(super) struct Printer {
    pub(super) is_compact: bool,
    pub(super) is_verbose: bool,
}

impl Printer {
    pub(super) fn request(&self, method: &Method, headers: &MetadataMap) {
        if self.is_verbose {
            note(format_args!("calling {}", method.path));
        }
        self.headers("with the headers", headers);
    }

    pub(super) fn headers(&self, what: &str, headers: &MetadataMap) {
        if !self.is_verbose {
            return;
        }
        note(what);
        for entry in headers.iter() {
            match entry {
                KeyAndValueRef::Ascii(key, value) => {
                    note(format_args!("  {key}: {}", value.to_str().unwrap_or("(not ASCII)")))
                }
                KeyAndValueRef::Binary(key, value) => {
                    note(format_args!("  {key}: {}", String::from_utf8_lossy(value.as_encoded_bytes())));
                }
            }
        }
    }

    /// An answer that is an error.
    pub(super) fn status(&self, status: &Status, messages: &Messages) {
        self.headers("ended with the trailers", status.metadata());
        let message = if status.message().is_empty() { "it has no message" } else { status.message() };
        note(format_args!("error: {}: {message}", status_name(status.code())));
        if let Some(reason) = status.metadata().get(header::ERROR) {
            let reason = reason.to_str().unwrap_or("?");
            note(format_args!("this error comes from the mesh, not from the service: {}: {reason}", header::ERROR));
        }
        for any in any_details(status) {
            let name = type_name(&any);
            match messages.to_json(name, &any.value, !self.is_compact) {
                Ok(json) => note(format_args!("{name} {json}")),
                Err(_) => note(format_args!("{name}: {} bytes of a type that the mesh does not know", any.value.len())),
            }
        }
    }
}

/// Says that an answer does not come from the service, if so.
pub(super) fn tell_fallback(headers: &MetadataMap) {
    if let Some(fallback) = headers.get(header::FALLBACK) {
        let fallback = fallback.to_str().unwrap_or("?");
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
