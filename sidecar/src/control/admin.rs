//! The admin port: the state of this sidecar as a page, as JSON and over gRPC, and its commands: drain, change the log
//! filter, take a CPU profile.
//!
//! [`state`] collects everything into one message; [`mod@page`] and [`json`] show it in other forms.

mod access;
mod calls;
mod json;
mod limits;
mod log;
mod memory;
mod message;
mod page;
mod profile;
mod state;

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Form, Json, Router,
    extract::{FromRequest, Query, Request, State},
    http::{StatusCode, header},
    middleware,
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use tokio::net::TcpListener;
use tonic::{Request as RpcRequest, Response as RpcResponse, Status};
use weft_contracts::weft::admin::v1::{
    self as wire, DrainRequest, DrainResponse, GetStateRequest, ProfileCpuRequest, ProfileCpuResponse,
    SetLogFilterRequest,
    admin_server::{Admin, AdminServer},
};

pub(super) use log::{Log, keep_log};

use super::{Control, serve::serve};

/// Serves the port for as long as the sidecar runs.
pub(super) async fn run(control: Arc<Control>, listener: TcpListener) -> anyhow::Result<()> {
    let app = routes(&control);
    let streams = weft_mesh::limits::ADMIN_STREAMS;
    serve(&control, listener, "the admin port", app, streams, &control.connections.admin).await;
    Ok(())
}

fn routes(control: &Arc<Control>) -> Router {
    let pages = Router::new()
        .route("/", get(page))
        .route("/state", get(state_json))
        .route("/log", get(log_json).post(set_log).put(set_log))
        .route("/drain", post(drain))
        .route("/profile/cpu", get(profile_cpu))
        .with_state(Arc::clone(control));
    let grpc = tonic::service::Routes::new(AdminServer::new(AdminService(Arc::clone(control))));
    // The pages are merged in, because tonic's fallback answers every other path.
    grpc.into_axum_router().merge(pages).layer(middleware::from_fn(access::only_this_host))
}

/// With `?refresh` the page refreshes by itself.
async fn page(State(control): State<Arc<Control>>, Query(fields): Query<Fields>) -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; form-action 'self'";
    let page = page::render(&state::of(&control).await, fields.contains_key("refresh")).into_string();
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(page)).into_response()
}

async fn state_json(State(control): State<Arc<Control>>) -> Response {
    Json(json::of(&state::of(&control).await)).into_response()
}

async fn log_json(State(control): State<Arc<Control>>) -> Response {
    Json(json::log(&control.log.state())).into_response()
}

/// Names and values of a query, or of a form.
type Fields = HashMap<String, String>;

/// `?filter=FILTER&for=TIME`, or the same as a form; after a form, the browser is sent back to the page.
async fn set_log(State(control): State<Arc<Control>>, request: Request) -> Response {
    let is_form = request.uri().query().is_none();
    let fields = if is_form {
        Form::from_request(request, &()).await.map(|Form(fields)| fields).map_err(|refused| refused.body_text())
    } else {
        Query::try_from_uri(request.uri()).map(|Query(fields)| fields).map_err(|refused| refused.body_text())
    };
    match fields.and_then(|fields| change_log(&control, &fields)) {
        Err(why) => bad_request(why),
        Ok(()) if is_form => Redirect::to("/#log").into_response(),
        Ok(()) => log_json(State(control)).await,
    }
}

fn change_log(control: &Control, fields: &Fields) -> Result<(), String> {
    only_known(fields, &["filter", "for"])?;
    let filter = fields.get("filter").ok_or("`filter` is missing: what to log, such as info,weft_sidecar=debug")?;
    let time = time_of(fields, "for")?;
    control.log.set(filter.trim(), time).map_err(|refused| refused.to_string())
}

async fn drain(State(control): State<Arc<Control>>) -> &'static str {
    tracing::info!("told to drain through the admin port");
    control.drain();
    "draining\n"
}

/// `?seconds=N&format=FORMAT`
async fn profile_cpu(Query(fields): Query<Fields>) -> Response {
    let asked = only_known(&fields, &["seconds", "format"]).and_then(|()| {
        let time = time_of(&fields, "seconds")?.unwrap_or(profile::DEFAULT_TIME);
        Ok((time, fields.get("format").map_or(Ok(profile::Format::Collapsed), |format| format.parse())?))
    });
    let (time, format) = match asked {
        Ok(asked) => asked,
        Err(why) => return bad_request(why),
    };
    match profile::cpu(time, format).await {
        Ok(profile) => ([(header::CONTENT_TYPE, format.content_type())], profile).into_response(),
        Err(refused) => {
            let status = match refused {
                profile::Refused::Absent => StatusCode::NOT_IMPLEMENTED,
                profile::Refused::Busy => StatusCode::CONFLICT,
                profile::Refused::Time(_) => StatusCode::BAD_REQUEST,
                profile::Refused::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            (status, format!("{refused}\n")).into_response()
        }
    }
}

fn bad_request(why: String) -> Response {
    (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response()
}

/// A misspelled name must not be ignored.
fn only_known(fields: &Fields, known: &[&str]) -> Result<(), String> {
    match fields.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(format!("`{name}` is not known; allowed: {}", known.join(", "))),
        None => Ok(()),
    }
}

/// An empty field of a form counts as absent.
fn time_of(fields: &Fields, name: &str) -> Result<Option<Duration>, String> {
    let Some(text) = fields.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    match log::time(text) {
        Some(time) => Ok(Some(time)),
        None => Err(format!("`{name}` is `{text}`, which is no time; allowed: times such as 30s, 5m and 1h")),
    }
}

/// See the module.
struct AdminService(Arc<Control>);

#[tonic::async_trait]
impl Admin for AdminService {
    async fn get_state(&self, _: RpcRequest<GetStateRequest>) -> Result<RpcResponse<wire::State>, Status> {
        Ok(RpcResponse::new(state::of(&self.0).await))
    }

    async fn drain(&self, _: RpcRequest<DrainRequest>) -> Result<RpcResponse<DrainResponse>, Status> {
        tracing::info!("told to drain through the admin port");
        self.0.drain();
        Ok(RpcResponse::new(DrainResponse {}))
    }

    async fn set_log_filter(&self, request: RpcRequest<SetLogFilterRequest>) -> Result<RpcResponse<wire::Log>, Status> {
        let request = request.into_inner();
        let log = &self.0.log;
        log.set(&request.filter, rpc_time(request.r#for)?).map_err(|e| Status::invalid_argument(e.to_string()))?;
        Ok(RpcResponse::new(log.state()))
    }

    async fn profile_cpu(
        &self,
        request: RpcRequest<ProfileCpuRequest>,
    ) -> Result<RpcResponse<ProfileCpuResponse>, Status> {
        let request = request.into_inner();
        let time = rpc_time(request.r#for)?.unwrap_or(profile::DEFAULT_TIME);
        let profile = profile::cpu(time, request.format().into()).await;
        let profile = profile.map_err(|refused| match refused {
            profile::Refused::Absent => Status::unimplemented(refused.to_string()),
            profile::Refused::Busy => Status::failed_precondition(refused.to_string()),
            profile::Refused::Time(_) => Status::invalid_argument(refused.to_string()),
            profile::Refused::Failed(_) => Status::internal(refused.to_string()),
        })?;
        Ok(RpcResponse::new(ProfileCpuResponse { profile: profile.into() }))
    }
}

fn rpc_time(time: Option<prost_types::Duration>) -> Result<Option<Duration>, Status> {
    let negative = |_| Status::invalid_argument("`for` is negative");
    time.map(|time| Duration::try_from(time).map_err(negative)).transpose()
}
