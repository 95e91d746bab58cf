//! A probe over gRPC: `grpc.health.v1.Health/Check`.

use std::{io, net::SocketAddr};

use hyper_util::rt::TokioIo;
use tonic::transport::{Endpoint, Uri};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{connect::Target, http::USER_AGENT};

/// Whether the service says that it is serving. A server without the health service fails the probe, as with the kubelet.
pub(super) async fn check(service: &str, port: u16, target: Target) -> Result<(), String> {
    let mut stream = Some(TokioIo::new(target.connect(port).await?));
    let endpoint = Endpoint::from_shared(format!("http://{}", SocketAddr::new(target.host(), port)));
    let endpoint = endpoint.and_then(|endpoint| endpoint.user_agent(USER_AGENT)).map_err(|error| error.to_string())?;
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.take().ok_or_else(|| io::Error::other("the connection has ended"));
        std::future::ready(stream)
    });
    let failed = |why: &dyn std::fmt::Display| format!("gRPC health check on port {port}: {why}");
    let channel = endpoint.connect_with_connector(connector).await.map_err(|error| failed(&error))?;
    let asked = HealthClient::new(channel).check(HealthCheckRequest { service: service.to_owned() }).await;
    match asked {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            other => Err(failed(&format_args!("answered {}", other.as_str_name()))),
        },
        Err(status) => Err(failed(&super::super::retry::status(&status))),
    }
}
