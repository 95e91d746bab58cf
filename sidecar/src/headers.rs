//! Header lists as the http crate has them, for what speaks through hyper or tonic.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, request, response};
use weft_wire::{Headers, Name};

/// The fields without the pseudo-headers.
pub(crate) fn to_header_map(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(headers.len());
    for field in headers.fields() {
        // The core lets no other bytes through.
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

/// The head of a request, whose target must be absolute.
pub(crate) fn of_request(head: &request::Parts) -> Headers {
    let mut headers = Headers::new();
    headers.set(Name::METHOD, head.method.as_str().as_bytes());
    headers.set(Name::SCHEME, head.uri.scheme_str().unwrap_or("http").as_bytes());
    if let Some(authority) = head.uri.authority() {
        headers.set(Name::AUTHORITY, authority.as_str().as_bytes());
    }
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    headers.set(Name::PATH, path.as_bytes());
    append(&mut headers, &head.headers);
    headers
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

/// An answer with this head.
pub(crate) fn to_response<B>(headers: &Headers, body: B) -> Response<B> {
    let mut response = Response::new(body);
    let status = headers.status().and_then(|status| StatusCode::from_u16(status).ok());
    *response.status_mut() = status.unwrap_or(StatusCode::BAD_GATEWAY);
    *response.headers_mut() = to_header_map(headers);
    response
}
