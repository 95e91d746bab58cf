//! Header lists cleaned of what their sender may not say, and converted to and from the types of the `http` crate, for services that are built on tonic.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, response};
use weft_mesh::names;
use weft_wire::{Headers, Name};

/// Tells the service who calls. Only its own sidecar may set it.
pub(crate) const CLIENT_CERT: Name = Name::other(names::header::CLIENT_CERT);

/// The list as it may be passed on: a copy without what `remove` removes if `is_unclean`, else the list itself.
pub(crate) fn cleaned(list: &Headers, is_unclean: bool, remove: impl FnOnce(&mut Headers)) -> Cow<'_, Headers> {
    if !is_unclean {
        return Cow::Borrowed(list);
    }
    let mut list = list.clone();
    remove(&mut list);
    Cow::Owned(list)
}

/// The fields without the pseudo-headers.
pub(crate) fn to_header_map(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(headers.len());
    for field in headers.fields() {
        // The HTTP/2 core has checked the bytes already.
        if let (Ok(name), Ok(mut value)) = (HeaderName::from_bytes(field.name), HeaderValue::from_bytes(field.value)) {
            value.set_sensitive(field.is_sensitive);
            map.append(name, value);
        }
    }
    map
}

/// Adds the fields of a map.
pub(crate) fn append(headers: &mut Headers, map: &HeaderMap) {
    for (name, value) in map {
        if value.is_sensitive() {
            headers.append_sensitive(name.as_str().as_bytes(), value.as_bytes());
        } else {
            headers.append_bytes(name.as_str().as_bytes(), value.as_bytes());
        }
    }
}

/// The head of an answer.
pub(crate) fn of_response(head: &response::Parts) -> Headers {
    let mut headers = Headers::new();
    headers.set(Name::STATUS, head.status.as_str().as_bytes());
    append(&mut headers, &head.headers);
    headers
}

/// A request with this head.
pub(crate) fn to_request<B>(headers: &Headers, uri: Uri, body: B) -> Result<Request<B>, http::Error> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::from_bytes(headers.method().unwrap_or_default())?;
    *request.uri_mut() = uri;
    *request.headers_mut() = to_header_map(headers);
    Ok(request)
}
