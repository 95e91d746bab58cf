//! Runs parts of the sidecar on arbitrary inputs, for tests and fuzzing. Each function panics if something that must
//! hold for every input does not.

#[cfg(test)]
pub(crate) mod mesh;
#[cfg(test)]
pub(crate) mod peer;
mod relay;
#[cfg(test)]
pub(crate) mod service;
pub(crate) mod tls;
#[cfg(test)]
pub(crate) mod unheard;

use weft_mesh::names::{self, ServiceName};
use weft_wire::{Headers, Name};

#[cfg(test)]
pub(crate) use self::relay::{
    inbound, worker, worker_with_flags, worker_with_flags_and_questions, worker_with_questions,
};
pub use self::{relay::relay, tls::stream as tls_stream};
use crate::{
    accept::detect,
    message::{rpc::Rpc, target},
};

/// Detects the protocol of a client that starts with these bytes. More bytes may settle the protocol, but never change
/// it.
pub fn detection(bytes: &[u8]) {
    let mut judged = None;
    for end in 1..=bytes.len().min(4) {
        let verdict = detect::judge(&bytes[..end]).map_err(|why| why.to_string());
        match (&judged, &verdict) {
            (None | Some(Ok(None)), _) => {}
            // Bytes that look like a method so far may go on differently.
            (Some(Ok(Some(detect::Wire::Http1))), Err(_)) => {}
            (Some(Err(_)), Err(_)) => {}
            (Some(before), now) => assert_eq!(before, now, "after {end} bytes"),
        }
        judged = Some(verdict);
    }
    if bytes.len() >= 4 {
        let is_http2 = judged == Some(Ok(Some(detect::Wire::Http2)));
        assert_eq!(is_http2, bytes.starts_with(b"PRI "));
        assert_ne!(judged, Some(Ok(None)), "four bytes are enough");
    }
}

/// Resolves the service of a head with these lines, each `NAME VALUE`.
pub fn target(lines: &[u8]) {
    let mut head = Headers::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(2, |byte| *byte == b' ');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        match name {
            b":authority" => head.set(Name::AUTHORITY, value),
            b":path" => head.set(Name::PATH, value),
            b":method" => head.set(Name::METHOD, value),
            _ => head.append_bytes(name, value),
        }
    }
    let is_named = target::is_named(&head);
    let (path, is_rpc) = (head.path().map(<[u8]>::to_vec), Rpc::of(&head).is_some());
    let found = target::resolve(&mut head, "shop");
    assert!(head.get(Name::other(names::header::SERVICE)).is_none(), "the header is not forwarded");
    if is_named {
        assert!(matches!(found, Ok(target::Target::Service(_)) | Err(target::TargetError::Header(_))));
    }
    match found {
        Ok(target::Target::Service(name)) => assert_eq!(ServiceName::parse(name.as_str()).as_ref(), Ok(&name)),
        Ok(_) => assert!(is_rpc),
        Err(_) => {}
    }
    if head.path() != path.as_deref() {
        let (before, after) = (path.unwrap_or_default(), head.path().unwrap_or_default());
        assert!(after.starts_with(b"/") && !is_rpc, "only the service's name is removed from a path");
        assert!(before.ends_with(&after[1..]), "and the rest stays");
    }
    let path = target::path(&head).into_owned();
    assert!(target::contract(&path).is_none_or(|contract| path[1..].starts_with(contract)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_any_bytes_are_resolved_or_refused() {
        for seed in 0..2_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let words = [
                &b":path"[..],
                b":authority",
                b"host",
                b"x-weft-service",
                b" ",
                b"\n",
                b"/",
                b"a",
                b".",
                b"?",
                b"content-type application/grpc",
            ];
            let mut bytes = Vec::new();
            for _ in 0..random.usize(..30) {
                match random.usize(..words.len() + 1) {
                    one if one < words.len() => bytes.extend_from_slice(words[one]),
                    _ => bytes.push(random.u8(..)),
                }
            }
            target(&bytes);
            detection(&bytes);
        }
    }
}
