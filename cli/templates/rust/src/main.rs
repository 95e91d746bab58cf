//! The greeter: implements hello.v1.Greeter of proto/hello/v1/hello.proto.

use std::{env, error::Error, net::SocketAddr};

use tokio::signal::unix::{SignalKind, signal};
use tonic::{Request, Response, Status, transport::Server};

use crate::hello::{
    HelloRequest, HelloResponse,
    greeter_server::{Greeter, GreeterServer},
};

mod hello {
    tonic::include_proto!("hello.v1");
}

struct Service {
    replica: String,
}

#[tonic::async_trait]
impl Greeter for Service {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloResponse>, Status> {
        let name = request.into_inner().name;
        let name = if name.is_empty() { "world" } else { &name };
        println!("hello to {name}");
        Ok(Response::new(HelloResponse { text: format!("Hello, {name}!"), answered_by: self.replica.clone() }))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let replica = env::args().nth(1).unwrap_or_else(|| "greeter".to_owned());
    // `weft up` sets the address. Only the sidecar calls it, so it needs no TLS: the sidecars have TLS between them.
    let address: SocketAddr = env::var("WEFT_LISTEN").unwrap_or_else(|_| "127.0.0.1:50051".to_owned()).parse()?;
    // The sidecar asks for this, and sends no calls before the answer is SERVING.
    let (_, health) = tonic_health::server::health_reporter();
    println!("{replica} listens at {address}");
    Server::builder()
        .add_service(health)
        .add_service(GreeterServer::new(Service { replica }))
        .serve_with_shutdown(address, asked_to_stop())
        .await?;
    Ok(())
}

/// Completes at SIGTERM or Ctrl-C. From then on no new calls are accepted; running calls may end.
async fn asked_to_stop() {
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be listened for");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
