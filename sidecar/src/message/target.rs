//! Which service a call is for.

use weft_mesh::names::{self, NameError, ServiceName};
use weft_wire::{Headers, Name};

use crate::message::rpc::Rpc;

const SERVICE: Name = Name::other(names::header::SERVICE);

/// What a head asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A service by its name.
    Service(ServiceName),
    /// The service that implements the protobuf service in the path.
    Contract,
    /// The sidecar itself: gRPC server reflection.
    Reflection,
}

/// Why a head names no target.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("`x-weft-service`: {0}")]
    Header(NameError),
    #[error(
        "the request names no service: give one as its authority, as `x-weft-service` or, over HTTP, in the path /SERVICE/..."
    )]
    Nothing,
}

/// Finds the target of a head. It looks in this order: `x-weft-service` (removed); an authority that names a service;
/// for gRPC, gRPC-Web and Connect, the protobuf service in the path; else the first part of the path (stripped).
pub(crate) fn resolve(head: &mut Headers, namespace: &str) -> Result<Target, TargetError> {
    if let Some(name) = head.get(SERVICE) {
        let name = String::from_utf8_lossy(name);
        let target = ServiceName::parse_in(&name, namespace).map(Target::Service).map_err(TargetError::Header);
        head.remove(SERVICE);
        return target;
    }
    if let Some(service) = ServiceName::from_authority(&authority(head), namespace) {
        return Ok(Target::Service(service));
    }
    if Rpc::of(head).is_some() {
        let is_reflection = contract(&path(head)).is_some_and(|name| name.starts_with("grpc.reflection.v1"));
        return Ok(if is_reflection { Target::Reflection } else { Target::Contract });
    }
    by_path(head, namespace).ok_or(TargetError::Nothing)
}

/// Whether a head names its service in `x-weft-service`.
pub(crate) fn is_named(head: &Headers) -> bool {
    named(head).is_some()
}

/// The value of `x-weft-service`.
pub(crate) fn named(head: &Headers) -> Option<&[u8]> {
    head.get(SERVICE)
}

/// The authority of a request: `:authority`, or `host` without it.
pub(crate) fn authority(head: &Headers) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(head.authority().or_else(|| head.get(Name::HOST)).unwrap_or_default())
}

/// The path with its query.
pub(crate) fn path(head: &Headers) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(head.path().unwrap_or_default())
}

/// A path without its query: the form in which methods are looked up.
pub(crate) fn without_query(path: &[u8]) -> &str {
    std::str::from_utf8(before_query(path)).unwrap_or_default()
}

/// A path without its query, in any encoding.
pub(crate) fn before_query(path: &[u8]) -> &[u8] {
    let end = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
    &path[..end]
}

/// Takes the service out of `/{service}/…`. The rest is passed on unchanged, even if it is not UTF-8.
fn by_path(head: &mut Headers, namespace: &str) -> Option<Target> {
    let rest = head.path()?.strip_prefix(b"/")?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (name, rest) = rest.split_at(end);
    let service = ServiceName::parse_in(std::str::from_utf8(name).ok()?, namespace).ok()?;
    let stripped = if rest.starts_with(b"/") { rest.to_vec() } else { [b"/", rest].concat() };
    head.set(Name::PATH, &stripped);
    head.set(Name::AUTHORITY, service.as_str().as_bytes());
    if head.get(Name::HOST).is_some() {
        head.set(Name::HOST, service.as_str().as_bytes());
    }
    Some(Target::Service(service))
}

/// The protobuf service in a path: `shop.users.v1.Users` of `/shop.users.v1.Users/Create`.
pub(crate) fn contract(path: &str) -> Option<&str> {
    let (contract, _) = path.strip_prefix('/')?.split_once('/')?;
    (!contract.is_empty()).then_some(contract)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(authority: &str, path: &str, fields: &[(&str, &str)]) -> (Result<Target, TargetError>, Headers) {
        let mut head = Headers::new();
        head.set(Name::AUTHORITY, authority.as_bytes());
        head.set(Name::PATH, path.as_bytes());
        for (name, value) in fields {
            head.append_bytes(name.as_bytes(), value.as_bytes());
        }
        (resolve(&mut head, "shop"), head)
    }

    fn service(name: &str) -> Result<Target, TargetError> {
        Ok(Target::Service(ServiceName::parse(name).unwrap()))
    }

    const GRPC: (&str, &str) = ("content-type", "application/grpc+proto");

    #[test]
    fn the_header_wins_over_the_authority_and_that_over_the_path() {
        let (target, head) = resolved("users", "/a.B/C", &[GRPC, ("x-weft-service", "orders")]);
        assert_eq!(target, service("orders.shop"));
        assert!(head.get(SERVICE).is_none());
        assert_eq!(resolved("users.other:80", "/a.B/C", &[GRPC]).0, service("users.other"));
        assert_eq!(resolved("127.0.0.1:15001", "/a.B/C", &[GRPC]).0, Ok(Target::Contract));
        assert_eq!(
            resolved("127.0.0.1:1", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", &[GRPC]).0,
            Ok(Target::Reflection)
        );
    }

    #[test]
    fn http_names_a_service_by_its_host_or_the_first_part_of_its_path() {
        assert_eq!(resolved("web:8080", "/x", &[]).0, service("web.shop"));
        for (path, rest) in [("/web/a/b?c=d", "/a/b?c=d"), ("/web", "/"), ("/web?x", "/?x"), ("/web/", "/")] {
            let (target, head) = resolved("127.0.0.1:15001", path, &[("host", "127.0.0.1:15001")]);
            assert_eq!(target, service("web.shop"));
            assert_eq!(head.path(), Some(rest.as_bytes()));
            assert_eq!((head.authority(), head.get(Name::HOST)), (Some(&b"web.shop"[..]), Some(&b"web.shop"[..])));
        }
        assert_eq!(resolved("localhost", "/", &[]).0, Err(TargetError::Nothing));

        let mut head = Headers::new();
        head.set(Name::PATH, b"/web/\xe9?\xff");
        assert_eq!(resolve(&mut head, "shop"), service("web.shop"));
        assert_eq!(head.path(), Some(&b"/\xe9?\xff"[..]));
    }

    #[test]
    fn an_invalid_name_is_an_error() {
        assert!(matches!(resolved("", "/", &[("x-weft-service", "no such")]).0, Err(TargetError::Header(_))));
    }
}
