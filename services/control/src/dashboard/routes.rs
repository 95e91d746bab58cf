//! The routes, and the checks around every request.

use std::net::IpAddr;

use axum::{
    Router,
    extract::{Path, Query, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use maud::Markup;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::SERVICE_NAME;
use weft_mesh::{http_server::Ends, limits};

use super::{Dashboard, LIST_DEFAULT, LIST_LATEST, LIST_MAX, access::Access, json, metrics, pages};
use crate::traces::{self, Filter, TraceId};

const CSS: &str = include_str!("assets/weft.css");
const SCRIPT: &str = include_str!("assets/weft.js");
const ICON: &str = include_str!("assets/weft.svg");

/// Every route.
pub(super) fn routes(dashboard: Dashboard) -> Router {
    let asset = |kind: &'static str, text: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text) })
    };
    Router::new()
        .route("/", get(overview))
        .route("/traces", get(trace_list))
        .route("/traces/{id}", get(trace))
        .route(
            "/api/services",
            get(async |State(dashboard): State<Dashboard>| json::services(&dashboard.catalog.services())),
        )
        .route(
            "/api/claims",
            get(async |State(dashboard): State<Dashboard>| json::claims(&dashboard.catalog.contests())),
        )
        .route(
            "/api/access",
            get(async |State(dashboard): State<Dashboard>| json::not_allowed(&dashboard.catalog.not_allowed())),
        )
        .route("/api/sidecars", get(api_sidecars))
        .route("/api/traces", get(api_traces))
        .route("/api/traces/{id}", get(api_trace))
        .route("/assets/weft.css", asset("text/css; charset=utf-8", CSS))
        .route("/assets/weft.js", asset("text/javascript; charset=utf-8", SCRIPT))
        .route("/assets/weft.svg", asset("image/svg+xml", ICON))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(async |State(dashboard): State<Dashboard>| metrics::answer(dashboard.catalog.figures())))
        .route_service(&format!("/{SERVICE_NAME}/{{*method}}"), traces::receiver(dashboard.store.clone()))
        .fallback(unknown)
        .layer(middleware::from_fn_with_state(dashboard.clone(), guard))
        .with_state(dashboard)
}

/// Around every request: access checks, a time limit, and headers that keep the content of spans from running.
async fn guard(State(dashboard): State<Dashboard>, request: Request, next: Next) -> Response {
    let mut response = match refusal(&dashboard.access, &request) {
        Some(refused) => refused,
        None => match tokio::time::timeout(limits::DASHBOARD_TIMEOUT, next.run(request)).await {
            Ok(response) => response,
            Err(_) => (StatusCode::REQUEST_TIMEOUT, "the request took too long\n").into_response(),
        },
    };
    const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
                          connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// The refusal of a request that is not allowed.
pub(super) fn refusal(access: &Access, request: &Request) -> Option<Response> {
    let path = request.uri().path();
    // A probe may use any name, as it learns nothing.
    if !matches!(path, "/healthz" | "/readyz")
        && let Err(host) = access.check_host(request.uri(), request.headers())
    {
        let why = format!(
            "this dashboard is not called `{host}`: open it at an IP address or as localhost, or allow the name with \
             --dashboard-host\n"
        );
        return Some((StatusCode::MISDIRECTED_REQUEST, why).into_response());
    }
    let is_export = path.strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE_NAME)).is_some();
    let ends = request.extensions().get::<Ends>();
    if is_export && !ends.is_some_and(|ends| access.takes_spans(ends.peer.ip())) {
        let why = "spans are taken from this host only; allow other hosts with --remote-spans";
        return Some(tonic::Status::permission_denied(why).into_http::<axum::body::Body>());
    }
    None
}

fn html(page: Markup) -> Response {
    Html(page.into_string()).into_response()
}

async fn readyz(State(dashboard): State<Dashboard>) -> Response {
    match dashboard.catalog.is_ready() {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response(),
    }
}

async fn overview(State(dashboard): State<Dashboard>) -> Response {
    let latest = dashboard.store.list(&Filter { service: None, errors: false, name: None, limit: LIST_LATEST });
    let mesh = pages::Mesh {
        services: &dashboard.catalog.services(),
        contests: &dashboard.catalog.contests(),
        not_allowed: &dashboard.catalog.not_allowed(),
    };
    html(pages::overview(mesh, &latest, &dashboard.store.services(), dashboard.store.counts()))
}

/// The query of a list as it was sent. Every part is optional.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct ListQuery {
    service: String,
    errors: String,
    name: String,
    limit: String,
}

impl ListQuery {
    /// The filter, or the problem with the query.
    fn filter(&self) -> Result<Filter, String> {
        let text = |text: &str| (!text.trim().is_empty()).then(|| text.trim().to_owned());
        let errors = match self.errors.as_str() {
            "" | "0" | "false" => false,
            "1" | "true" | "on" => true,
            other => return Err(format!("errors: found {other:?}, allowed are true and false")),
        };
        let limit = match self.limit.trim() {
            "" => LIST_DEFAULT,
            number => number
                .parse()
                .ok()
                .filter(|limit| (1..=LIST_MAX).contains(limit))
                .ok_or_else(|| format!("limit: found {number:?}, allowed is a number from 1 to {LIST_MAX}"))?,
        };
        Ok(Filter { service: text(&self.service), errors, name: text(&self.name), limit })
    }
}

async fn trace_list(State(dashboard): State<Dashboard>, Query(query): Query<ListQuery>) -> Response {
    match query.filter() {
        Ok(filter) => {
            let found = dashboard.store.list(&filter);
            html(pages::trace_list(&filter, &found, &dashboard.store.services(), dashboard.store.counts()))
        }
        Err(why) => (StatusCode::BAD_REQUEST, html(pages::problem("This list cannot be made", &why))).into_response(),
    }
}

async fn api_traces(State(dashboard): State<Dashboard>, Query(query): Query<ListQuery>) -> Response {
    match query.filter() {
        Ok(filter) => json::traces(&dashboard.store.list(&filter), dashboard.store.counts()),
        Err(why) => json::problem(StatusCode::BAD_REQUEST, &why),
    }
}

/// A part of the list of sidecars.
#[derive(serde::Deserialize)]
#[serde(default)]
struct SidecarsQuery {
    after: String,
    limit: usize,
}

impl Default for SidecarsQuery {
    fn default() -> Self {
        Self { after: String::new(), limit: LIST_MAX }
    }
}

async fn api_sidecars(State(dashboard): State<Dashboard>, Query(query): Query<SidecarsQuery>) -> Response {
    let read = |text: &str| {
        let (address, id) = text.split_once(',')?;
        Some((address.parse::<IpAddr>().ok()?, id.to_owned()))
    };
    let after = read(&query.after);
    if after.is_none() && !query.after.is_empty() {
        return json::problem(StatusCode::BAD_REQUEST, "after: allowed is ADDRESS,SPIFFE-ID, as `next` has it");
    }
    if !(1..=LIST_MAX).contains(&query.limit) {
        let why = format!("limit: found {}, allowed is a number from 1 to {LIST_MAX}", query.limit);
        return json::problem(StatusCode::BAD_REQUEST, &why);
    }
    json::sidecars(&dashboard.catalog.sidecars(after.as_ref(), query.limit))
}

async fn trace(State(dashboard): State<Dashboard>, Path(id): Path<String>) -> Response {
    let (why, id) = match id.parse::<TraceId>() {
        Ok(id) => match dashboard.store.get(id) {
            Some(stored) => return html(pages::trace(&stored, &dashboard.store.services())),
            None if dashboard.store.was_evicted(id) => (pages::Missing::Evicted, id.to_string()),
            None => (pages::Missing::NotSeen, id.to_string()),
        },
        Err(_) => (pages::Missing::NotAnId, id),
    };
    (StatusCode::NOT_FOUND, html(pages::no_trace(why, &id))).into_response()
}

async fn api_trace(State(dashboard): State<Dashboard>, Path(id): Path<String>) -> Response {
    match id.parse::<TraceId>() {
        Ok(id) => match dashboard.store.get(id) {
            Some(stored) => json::trace(&stored),
            None if dashboard.store.was_evicted(id) => {
                json::problem(StatusCode::NOT_FOUND, "the trace was dropped to make room for newer ones")
            }
            None => {
                json::problem(StatusCode::NOT_FOUND, "no span of this trace has arrived, or it was dropped long ago")
            }
        },
        Err(error) => json::problem(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

/// The answer for an unknown path: a page, or a gRPC status for gRPC clients.
async fn unknown(headers: HeaderMap) -> Response {
    let is_grpc = |kind: &HeaderValue| kind.as_bytes().starts_with(b"application/grpc");
    if headers.get(header::CONTENT_TYPE).is_some_and(is_grpc) {
        let status = tonic::Status::unimplemented(format!("this port takes spans only: {SERVICE_NAME}"));
        return status.into_http::<axum::body::Body>();
    }
    let why = "The pages of this dashboard are the overview and the traces.";
    (StatusCode::NOT_FOUND, html(pages::problem("No such page", why))).into_response()
}
