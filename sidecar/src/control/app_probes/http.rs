//! A probe over HTTP, as the kubelet makes it: 200 to 399 is success, redirects to the same host are followed, and the
//! certificate of an `https` server is not checked.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, StatusCode, Uri,
    header::{ACCEPT, CONNECTION, HOST, LOCATION, USER_AGENT as USER_AGENT_NAME},
    response::Parts,
    uri::PathAndQuery,
};
use http_body_util::Empty;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{super::request, connect::Target};
use crate::args::{HttpProbe, path_of};

/// It begins as the kubelet's does, as programs look for that.
pub(super) const USER_AGENT: &str = concat!("kube-probe/weft-", env!("CARGO_PKG_VERSION"));
/// How many requests a probe makes at most: the others follow redirects. As many as the kubelet makes.
const REQUESTS: usize = 10;

/// Where a request goes. The host is always the pod.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    is_https: bool,
    port: u16,
    path: PathAndQuery,
    /// What the header `Host` says, without the one of the probe.
    authority: String,
}

/// Asks, and follows redirects.
pub(super) async fn get(probe: &HttpProbe, port: u16, target: Target) -> Result<(), String> {
    let authority = SocketAddr::new(target.host(), port).to_string();
    let mut place = Place { is_https: probe.is_https, port, path: probe.path.clone(), authority };
    let mut host = probe.headers.get(HOST).cloned();
    for _ in 0..REQUESTS {
        let answer = ask(&place, host.as_ref(), &probe.headers, target).await?;
        let Some(location) = redirect(&answer) else { return judge(&place, answer.status) };
        match follow(&place, location, target)? {
            Next::Here { next, is_relative } => {
                // A `Host` of the probe's own is for the server that was asked first.
                host = host.filter(|_| is_relative);
                place = next;
            }
            // The kubelet does not follow it, and takes it for success.
            Next::Elsewhere => return Ok(()),
        }
    }
    Err(format!("GET on port {port}: stopped after {REQUESTS} redirects"))
}

fn judge(place: &Place, status: StatusCode) -> Result<(), String> {
    match status.as_u16() {
        200..400 => Ok(()),
        _ => Err(format!("GET {} on port {} was answered with {status}", place.path.path(), place.port)),
    }
}

/// Where an answer redirects to, if it does.
fn redirect(answer: &Parts) -> Option<&str> {
    let is_redirect = matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = answer.headers.get(LOCATION).filter(|_| is_redirect)?;
    location.to_str().ok().filter(|location| !location.is_empty())
}

#[derive(Debug, PartialEq)]
enum Next {
    Here {
        next: Place,
        /// It names no host.
        is_relative: bool,
    },
    Elsewhere,
}

/// Where a redirect leads (RFC 3986, section 5.2).
fn follow(from: &Place, location: &str, target: Target) -> Result<Next, String> {
    let bad = || format!("redirected to {:?}, which is no URL", weft_mesh::names::shown(location));
    let scheme = if from.is_https { "https" } else { "http" };
    let with_scheme = location.starts_with("//").then(|| format!("{scheme}:{location}"));
    let location = with_scheme.as_deref().unwrap_or(location);
    let first = location.find(['/', '?', '#', ':']).map(|at| &location[at..]);
    if !first.is_some_and(|rest| rest.starts_with(':')) {
        let path = path_of(&absolute(from.path.path(), location)).ok_or_else(bad)?;
        return Ok(Next::Here { next: Place { path, ..from.clone() }, is_relative: true });
    }
    let without_fragment = location.split('#').next().unwrap_or_default();
    let uri: Uri = without_fragment.parse().map_err(|_| bad())?;
    let is_https = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(bad()),
    };
    let authority = uri.authority().ok_or_else(bad)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    if host.parse() != Ok(target.host()) {
        return Ok(Next::Elsewhere);
    }
    let port = authority.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let next = Place {
        is_https,
        port,
        path: path_of(path).ok_or_else(bad)?,
        authority: authority.as_str().rsplit('@').next().unwrap_or_default().to_owned(),
    };
    Ok(Next::Here { next, is_relative: false })
}

/// A relative reference as a path, with the path that it is relative to.
fn absolute(base: &str, reference: &str) -> String {
    let end = reference.find(['?', '#']).unwrap_or(reference.len());
    let (path, rest) = reference.split_at(end);
    if path.is_empty() {
        return format!("{base}{rest}");
    }
    let folder = if path.starts_with('/') { "" } else { base.rsplit_once('/').map_or("", |(folder, _)| folder) };
    let mut segments: Vec<&str> = Vec::new();
    let all = folder.split('/').chain(path.trim_start_matches('/').split('/'));
    let mut is_folder = false;
    for segment in all.filter(|segment| !segment.is_empty()) {
        is_folder = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    let end = if (is_folder || path.ends_with('/')) && !segments.is_empty() { "/" } else { "" };
    format!("/{}{end}{rest}", segments.join("/"))
}

/// One request, on a connection of its own.
async fn ask(place: &Place, host: Option<&HeaderValue>, headers: &HeaderMap, target: Target) -> Result<Parts, String> {
    let mut request =
        Request::get(place.path.clone()).body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let own = request.headers_mut();
    own.extend(headers.clone());
    let host = match host {
        Some(host) => host.clone(),
        None => HeaderValue::from_str(&place.authority).map_err(|error| error.to_string())?,
    };
    own.insert(HOST, host);
    own.entry(USER_AGENT_NAME).or_insert(HeaderValue::from_static(USER_AGENT));
    own.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    own.insert(CONNECTION, HeaderValue::from_static("close"));
    let stream = target.connect(place.port).await?;
    let answer =
        if place.is_https { over_tls(stream, request, target).await } else { request::head(stream, request).await };
    answer.map_err(|error| format!("GET {} on port {}: {error:#}", place.path.path(), place.port))
}

async fn over_tls(stream: TcpStream, request: Request<Empty<Bytes>>, target: Target) -> anyhow::Result<Parts> {
    let provider = CryptoProvider::get_default().cloned();
    let provider = provider.unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // An address is not sent as the server's name.
    let name = ServerName::IpAddress(target.host().into());
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    request::head(stream, request).await
}

/// Accepts any certificate, as the kubelet does: who can answer here is in the pod.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &str) -> Place {
        Place { is_https: false, port: 8080, path: path.parse().unwrap(), authority: "10.0.0.7:8080".into() }
    }

    #[test]
    fn a_redirect_to_the_same_host_is_followed() {
        let target = Target { pod: Some([10, 0, 0, 7].into()) };
        let next = |location: &str| follow(&place("/a/b?c"), location, target);
        for (location, path) in [
            ("/x", "/x"),
            ("x?y#z", "/a/x?y"),
            ("../x/", "/x/"),
            ("../../../x", "/x"),
            ("./", "/a/"),
            ("..", "/"),
            ("?y", "/a/b?y"),
            ("/x y", "/x%20y"),
            ("x/:y", "/a/x/:y"),
        ] {
            let Ok(Next::Here { next, is_relative: true }) = next(location) else { panic!("{location}") };
            assert_eq!((next.path.as_str(), next.port, next.is_https), (path, 8080, false), "{location}");
        }
        for (location, port, is_https, path, authority) in [
            ("http://10.0.0.7/x", 80, false, "/x", "10.0.0.7"),
            ("https://10.0.0.7", 443, true, "/", "10.0.0.7"),
            ("https://10.0.0.7:8443/x?y#z", 8443, true, "/x?y", "10.0.0.7:8443"),
            ("//10.0.0.7:81/x", 81, false, "/x", "10.0.0.7:81"),
            ("http://me@10.0.0.7:81/x", 81, false, "/x", "10.0.0.7:81"),
        ] {
            let here = Next::Here {
                next: Place { is_https, port, path: path.parse().unwrap(), authority: authority.into() },
                is_relative: false,
            };
            assert_eq!(next(location), Ok(here), "{location}");
        }
        for location in ["http://10.0.0.8/", "https://example.com/x", "//example.com"] {
            assert_eq!(next(location), Ok(Next::Elsewhere), "{location}");
        }
        for location in ["ftp://10.0.0.7/", "http://", "javascript:x", "http://[::1", "::"] {
            assert!(next(location).is_err(), "{location}");
        }
    }
}
