//! Which service a call is for.

use http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts, uri::PathAndQuery};
use weft_mesh::names::{self, NameError, ServiceName};

static SERVICE: HeaderName = HeaderName::from_static(names::header::SERVICE);

/// What a head asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A service by its name.
    Service(ServiceName),
    /// Whoever implements the protobuf service that the path names.
    Contract,
    /// The sidecar itself: gRPC server reflection.
    Reflection,
}

/// Why a head names nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("`x-weft-service`: {0}")]
    Header(NameError),
    #[error(
        "the request names no service: give one as its authority, as `x-weft-service` or, over HTTP, in the path /SERVICE/..."
    )]
    Nothing,
}

/// The names that a connection's last call was resolved with: most connections always say the same.
#[derive(Debug, Default)]
pub(crate) struct AuthorityCache {
    authority: String,
    service: Option<ServiceName>,
}

impl AuthorityCache {
    fn resolve(&mut self, authority: &str, namespace: &str) -> Option<ServiceName> {
        if self.authority != authority {
            authority.clone_into(&mut self.authority);
            self.service = ServiceName::from_authority(authority, namespace);
        }
        self.service.clone()
    }
}

/// Finds the target in a head, in this order: `x-weft-service` (removed), an authority that names a service, for
/// gRPC the protobuf service in the path, else the first part of the path (stripped).
pub(crate) fn resolve(head: &mut Parts, namespace: &str, cache: &mut AuthorityCache) -> Result<Target, TargetError> {
    if let Some(name) = head.headers.remove(&SERVICE) {
        let name = String::from_utf8_lossy(name.as_bytes());
        return ServiceName::parse_in(&name, namespace).map(Target::Service).map_err(TargetError::Header);
    }
    let authority = match head.uri.authority() {
        Some(authority) => authority.as_str(),
        None => head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
    };
    if let Some(service) = cache.resolve(authority, namespace) {
        return Ok(Target::Service(service));
    }
    if is_grpc(&head.headers) {
        let is_reflection = contract(head.uri.path()).is_some_and(|name| name.starts_with("grpc.reflection.v1"));
        return Ok(if is_reflection { Target::Reflection } else { Target::Contract });
    }
    by_path(head, namespace).ok_or(TargetError::Nothing)
}

/// Takes the service out of `/{service}/…`.
fn by_path(head: &mut Parts, namespace: &str) -> Option<Target> {
    let path = head.uri.path_and_query()?.as_str();
    let rest = path.strip_prefix('/')?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let service = ServiceName::parse_in(&rest[..end], namespace).ok()?;
    let rest = &rest[end..];
    let stripped = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    let mut uri = head.uri.clone().into_parts();
    uri.path_and_query = Some(PathAndQuery::try_from(stripped).ok()?);
    uri.scheme = Some(http::uri::Scheme::HTTP);
    uri.authority = Some(service.as_str().parse().ok()?);
    head.uri = http::Uri::from_parts(uri).ok()?;
    head.headers.insert(header::HOST, HeaderValue::from_str(service.as_str()).ok()?);
    Some(Target::Service(service))
}

/// The protobuf service in a path: `shop.users.v1.Users` of `/shop.users.v1.Users/Create`.
pub(crate) fn contract(path: &str) -> Option<&str> {
    let (contract, _) = path.strip_prefix('/')?.split_once('/')?;
    (!contract.is_empty()).then_some(contract)
}

/// Whether a head belongs to gRPC.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(uri: &str, headers: &[(&'static str, &str)]) -> (Result<Target, TargetError>, Parts) {
        let mut request = http::Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        (resolve(&mut head, "shop", &mut AuthorityCache::default()), head)
    }

    fn service(name: &str) -> Result<Target, TargetError> {
        Ok(Target::Service(ServiceName::parse(name).unwrap()))
    }

    const GRPC: (&str, &str) = ("content-type", "application/grpc+proto");

    #[test]
    fn the_header_wins_over_the_authority_and_that_over_the_path() {
        let (target, head) = resolved("http://users/a.B/C", &[GRPC, ("x-weft-service", "orders")]);
        assert_eq!(target, service("orders.shop"));
        assert!(head.headers.get("x-weft-service").is_none());
        assert_eq!(resolved("http://users.other:80/a.B/C", &[GRPC]).0, service("users.other"));
        assert_eq!(resolved("http://127.0.0.1:15001/a.B/C", &[GRPC]).0, Ok(Target::Contract));
        assert_eq!(
            resolved("http://127.0.0.1:1/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", &[GRPC]).0,
            Ok(Target::Reflection)
        );
    }

    #[test]
    fn http_names_a_service_by_its_host_or_the_first_part_of_its_path() {
        assert_eq!(resolved("/x", &[("host", "web:8080")]).0, service("web.shop"));
        for (path, rest) in [("/web/a/b?c=d", "/a/b?c=d"), ("/web", "/"), ("/web?x", "/?x"), ("/web/", "/")] {
            let (target, head) = resolved(path, &[("host", "127.0.0.1:15001")]);
            assert_eq!(target, service("web.shop"));
            assert_eq!(head.uri.path_and_query().unwrap(), rest);
            assert_eq!(head.headers["host"], "web.shop");
        }
        assert_eq!(resolved("/", &[("host", "localhost")]).0, Err(TargetError::Nothing));
    }

    #[test]
    fn a_bad_name_is_said_to_be_one() {
        assert!(matches!(resolved("/", &[("x-weft-service", "no such")]).0, Err(TargetError::Header(_))));
    }
}
