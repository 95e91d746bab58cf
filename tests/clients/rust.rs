//! The cases in Rust, with clients that tonic generates.

use std::time::Duration;

use anyhow::{Context as _, Error, anyhow, ensure};
use tokio_stream::StreamExt as _;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::CompressionEncoding,
    metadata::{BinaryMetadataValue, MetadataValue},
    transport::Channel,
};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;
use weft_contracts::shop::{
    notifications::v1::{NotifyRequest, notifications_client::NotificationsClient},
    products::v1::{GetRequest, Product, SearchRequest, products_client::ProductsClient},
    users::v1::{self as users, WatchRequest, users_client::UsersClient},
};
use weft_tests::Text;

/// A guard that only a very slow machine reaches.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs all cases, and returns the failures.
pub(crate) async fn cases(channel: Channel) -> Vec<String> {
    let channel = &channel;
    let mut failed = Vec::new();
    let mut is = |case: &str, ended: Result<Result<(), Error>, tokio::time::error::Elapsed>| match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => failed.push(format!("{case}: {error:#}")),
        Err(_) => failed.push(format!("{case}: takes longer than {LIMIT:?}")),
    };
    is("unary", tokio::time::timeout(LIMIT, unary(channel)).await);
    is("error-details", tokio::time::timeout(LIMIT, error_details(channel)).await);
    is("server-stream", tokio::time::timeout(LIMIT, server_stream(channel)).await);
    is("client-stream", tokio::time::timeout(LIMIT, client_stream(channel)).await);
    is("bidi-stream", tokio::time::timeout(LIMIT, bidi_stream(channel)).await);
    is("metadata", tokio::time::timeout(LIMIT, metadata(channel)).await);
    is("deadline", tokio::time::timeout(LIMIT, deadline(channel)).await);
    is("cancel", tokio::time::timeout(LIMIT, cancel(channel)).await);
    is("unknown-service", tokio::time::timeout(LIMIT, unknown_service(channel)).await);
    is("gzip", tokio::time::timeout(LIMIT, gzip(channel)).await);
    is("many-calls", tokio::time::timeout(LIMIT, many_calls(channel)).await);
    failed
}

/// Gets a product that exists.
async fn get_teapot(mut client: ProductsClient<Channel>) -> Result<(), Error> {
    let product = client.get(GetRequest { id: "teapot".into() }).await?.into_inner();
    ensure!(product.id == "teapot", "{product:?}");
    Ok(())
}

/// The status that a call ends with.
fn refused<T>(ended: Result<T, Status>, code: Code) -> Result<Status, Error> {
    let status = ended.err().with_context(|| format!("an answer instead of {code:?}"))?;
    ensure!(status.code() == code, "{status:?} instead of {code:?}");
    Ok(status)
}

async fn unary(channel: &Channel) -> Result<(), Error> {
    let mut client = UsersClient::new(channel.clone());
    let request = users::CreateRequest { name: "Ferris".into(), email: "ferris@example.com".into() };
    let made = client.create(request).await?.into_inner();
    let found = client.get(users::GetRequest { id: made.id.clone() }).await?.into_inner();
    ensure!(found.name == "Ferris", "{found:?}");
    Ok(())
}

async fn error_details(channel: &Channel) -> Result<(), Error> {
    let request = users::CreateRequest { name: "Ferris".into(), email: "nowhere".into() };
    let status = refused(UsersClient::new(channel.clone()).create(request).await, Code::InvalidArgument)?;
    let bad =
        status.get_details_bad_request().with_context(|| format!("no BadRequest among the details: {status:?}"))?;
    ensure!(bad.field_violations[0].field == "email", "{bad:?}");
    Ok(())
}

async fn server_stream(channel: &Channel) -> Result<(), Error> {
    let found = ProductsClient::new(channel.clone()).search(SearchRequest::default()).await?.into_inner();
    let found: Vec<_> = found.collect::<Result<_, _>>().await?;
    ensure!(found.len() >= 12, "{} products, not the dozen that there is", found.len());
    Ok(())
}

async fn client_stream(channel: &Channel) -> Result<(), Error> {
    let product = |i| Product { id: format!("rust-{i}"), name: "Imported by Rust".into(), price_cents: 1 };
    let sent = tokio_stream::iter((0..100).map(product));
    let imported = ProductsClient::new(channel.clone()).import(sent).await?.into_inner().imported;
    ensure!(imported == 100, "{imported} imported instead of 100");
    Ok(())
}

async fn bidi_stream(channel: &Channel) -> Result<(), Error> {
    let (requests, taken) = tokio::sync::mpsc::channel(1);
    let taken = tokio_stream::wrappers::ReceiverStream::new(taken);
    let mut told = NotificationsClient::new(channel.clone()).stream(taken).await?.into_inner();
    // Each is sent when the one before was answered: nothing may wait for the end of the stream.
    for i in 0..20 {
        let text = format!("number {i}");
        requests.send(NotifyRequest { user_id: "ferris".into(), text: text.clone() }).await?;
        let answer = told.message().await?.context("the stream ends early")?;
        ensure!(answer.text == text, "{answer:?} instead of {text}");
    }
    drop(requests);
    let after = told.message().await?;
    ensure!(after.is_none(), "{after:?} after the end");
    Ok(())
}

async fn metadata(channel: &Channel) -> Result<(), Error> {
    let mut request = Request::new(GetRequest { id: "teapot".into() });
    for tag in ["one", "two"] {
        request.metadata_mut().append("x-tag", MetadataValue::from_static(tag));
    }
    for blob in [&b"\0\x01\xfe\xff"[..], b"", b"odd"] {
        request.metadata_mut().append_bin("x-blob-bin", BinaryMetadataValue::from_bytes(blob));
    }
    let product = ProductsClient::new(channel.clone()).get(request).await?.into_inner();
    ensure!(product.id == "teapot", "{product:?}");
    Ok(())
}

async fn deadline(channel: &Channel) -> Result<(), Error> {
    let mut request = Request::new(WatchRequest {});
    request.set_timeout(Duration::from_millis(1));
    let ended = match UsersClient::new(channel.clone()).watch(request).await {
        Ok(events) => events.into_inner().collect::<Result<Vec<_>, _>>().await,
        Err(status) => Err(status),
    };
    // tonic's own timer ends the call with CANCELLED. It may fire before the mesh's.
    let own = matches!(&ended, Err(status) if status.code() == Code::Cancelled);
    if own { Ok(()) } else { refused(ended, Code::DeadlineExceeded).map(drop) }
}

async fn cancel(channel: &Channel) -> Result<(), Error> {
    let one = NotifyRequest { user_id: "ferris".into(), text: "the only one".into() };
    let requests = tokio_stream::once(one).chain(tokio_stream::pending());
    let mut told = NotificationsClient::new(channel.clone()).stream(requests).await?.into_inner();
    let answer = told.message().await?.context("no answer")?;
    ensure!(answer.text == "the only one", "{answer:?}");
    drop(told);
    get_teapot(ProductsClient::new(channel.clone())).await
}

async fn unknown_service(channel: &Channel) -> Result<(), Error> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await?;
    let path = http::uri::PathAndQuery::from_static("/shop.nothing.v1.Nothing/Do");
    let ended = client.unary(Request::new(Text::default()), path, ProstCodec::<Text, Text>::default()).await;
    let status = refused(ended, Code::Unimplemented)?;
    status.metadata().get("x-weft-error").map(drop).ok_or_else(|| anyhow!("no x-weft-error: {status:?}"))
}

async fn gzip(channel: &Channel) -> Result<(), Error> {
    let client = ProductsClient::new(channel.clone());
    get_teapot(client.send_compressed(CompressionEncoding::Gzip).accept_compressed(CompressionEncoding::Gzip)).await
}

async fn many_calls(channel: &Channel) -> Result<(), Error> {
    let mut lanes = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let client = ProductsClient::new(channel.clone());
        lanes.spawn(async move {
            for _ in 0..50 {
                get_teapot(client.clone()).await?;
            }
            Ok::<_, Error>(())
        });
    }
    lanes.join_all().await.into_iter().collect()
}
