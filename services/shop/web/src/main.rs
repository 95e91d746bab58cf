//! The shop's web page: a plain HTTP/1.1 service that does not know about Weft. Like most programs that run on a
//! platform, it reads its port from `PORT`.

use anyhow::Context;
use axum::{Router, http::header, response::Html, routing::get};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let port = std::env::var("PORT").context("PORT is not set: give the port to listen on")?;
    let port: u16 = port.parse().with_context(|| format!("PORT: `{port}` is not a port from 0 to 65535"))?;
    let listener =
        TcpListener::bind(("127.0.0.1", port)).await.with_context(|| format!("can't listen on port {port}"))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    eprintln!("the shop's page is at http://{}/", listener.local_addr()?);
    axum::serve(listener, routes())
        .with_graceful_shutdown(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await?;
    Ok(())
}

fn routes() -> Router {
    let text = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    Router::new()
        .route("/", get(async || Html(include_str!("index.html"))))
        .route("/health", get(async || "ok\n"))
        .route("/products.txt", get(async move || (text, include_str!("products.txt"))))
}
