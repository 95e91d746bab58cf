//! The admin port: what this sidecar knows and does, as a page, as JSON and over gRPC; and `drain`.
//!
//! It listens on loopback, which a web page in a browser on the same host can reach too: so a request must be
//! addressed to loopback by name (against DNS rebinding), and come from no other site.

mod page;
mod state;

use std::{net::IpAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use tokio::net::TcpListener;
use tonic::{Request as RpcRequest, Response as RpcResponse, Status};
use weft_contracts::weft::admin::v1::{
    self as wire, DrainRequest, DrainResponse, GetStateRequest,
    admin_server::{Admin, AdminServer},
};

use super::{Control, serve::serve};

/// Serves the port for as long as the sidecar runs.
pub(super) async fn run(control: Arc<Control>, listener: TcpListener) -> anyhow::Result<()> {
    let app = routes(&control);
    serve(control, listener, app).await
}

fn routes(control: &Arc<Control>) -> Router {
    let pages = Router::new()
        .route("/", get(page))
        .route("/state", get(state_json))
        .route("/drain", post(drain))
        .with_state(Arc::clone(control));
    let grpc = tonic::service::Routes::new(AdminServer::new(AdminService(Arc::clone(control))));
    // The pages first: tonic's fallback answers whatever nobody else does.
    grpc.into_axum_router().merge(pages).layer(middleware::from_fn(only_this_host))
}

async fn page(State(control): State<Arc<Control>>) -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; form-action 'self'";
    let page = page::render(&state::of(&control), control.unready_reason()).into_string();
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(page)).into_response()
}

async fn state_json(State(control): State<Arc<Control>>) -> Response {
    Json(state::json(&state::of(&control))).into_response()
}

async fn drain(State(control): State<Arc<Control>>) -> &'static str {
    tracing::info!("told to drain through the admin port");
    control.drain();
    "draining\n"
}

/// See the module.
struct AdminService(Arc<Control>);

#[tonic::async_trait]
impl Admin for AdminService {
    async fn get_state(&self, _: RpcRequest<GetStateRequest>) -> Result<RpcResponse<wire::State>, Status> {
        Ok(RpcResponse::new(state::of(&self.0)))
    }

    async fn drain(&self, _: RpcRequest<DrainRequest>) -> Result<RpcResponse<DrainResponse>, Status> {
        tracing::info!("told to drain through the admin port");
        self.0.drain();
        Ok(RpcResponse::new(DrainResponse {}))
    }
}

async fn only_this_host(request: Request, next: Next) -> Response {
    if is_addressed_to_this_host(request.uri(), request.headers()) && is_from_this_host(request.headers()) {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "only for this host: use 127.0.0.1, [::1] or localhost as the address\n").into_response()
}

/// By `:authority` (HTTP/2) or `Host`.
fn is_addressed_to_this_host(uri: &Uri, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    let authorities = [uri.authority().map(http::uri::Authority::as_str), host];
    authorities.iter().any(Option::is_some) && authorities.into_iter().flatten().all(is_loopback)
}

/// A browser says from which site a request comes; who is no browser says nothing.
fn is_from_this_host(headers: &HeaderMap) -> bool {
    headers.get_all(header::ORIGIN).iter().all(|origin| {
        let origin = origin.to_str().unwrap_or_default();
        origin.strip_prefix("http://").is_some_and(is_loopback)
    })
}

fn is_loopback(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<http::uri::Authority>() else { return false };
    let host = authority.host().trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_served() {
        let mut headers = HeaderMap::new();
        let uri: Uri = "/".parse().unwrap();
        assert!(!is_addressed_to_this_host(&uri, &headers), "a request without any name");
        for (host, is_served) in [
            ("127.0.0.1:15000", true),
            ("localhost:15000", true),
            ("[::1]:15000", true),
            ("127.0.0.1.evil.example:15000", false),
            ("evil.example", false),
            ("10.0.0.1:15000", false),
        ] {
            headers.insert(header::HOST, host.parse().unwrap());
            assert_eq!(is_addressed_to_this_host(&uri, &headers), is_served, "{host}");
        }
        let rebound: Uri = "http://evil.example/".parse().unwrap();
        headers.insert(header::HOST, "localhost".parse().unwrap());
        assert!(!is_addressed_to_this_host(&rebound, &headers));
    }

    #[test]
    fn other_sites_are_refused() {
        let mut headers = HeaderMap::new();
        assert!(is_from_this_host(&headers));
        for (origin, is_served) in [
            ("http://127.0.0.1:15000", true),
            ("http://localhost", true),
            ("https://evil.example", false),
            ("http://localhost.evil.example", false),
            ("null", false),
        ] {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
            assert_eq!(is_from_this_host(&headers), is_served, "{origin}");
        }
    }
}
