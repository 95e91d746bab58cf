//! Kit services that call each other without a mesh: the outbound address of one is the address of the other.
#![allow(clippy::unwrap_used)]

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{Notify, mpsc};
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataMap};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_client::HealthClient,
};
use weft_contracts::shop::products::v1::{
    GetRequest, ImportResponse, Product, SearchRequest,
    products_client::ProductsClient,
    products_server::{Products, ProductsServer},
};
use weft_kit::{Channel, Dependency, Routes, Running, Service, Settings, StartError, call, status};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// Far more than any step takes; a test that waits so long has failed.
const LIMIT: Duration = Duration::from_secs(60);

fn settings(outbound: &str) -> Settings {
    Settings::local("127.0.0.1:0".parse().unwrap(), outbound.parse().unwrap())
}

async fn start(service: Service, outbound: &str, products: impl FnOnce(weft_kit::Context) -> Fake) -> Running {
    let routes = |ctx| async move { Ok(Routes::new(ProductsServer::new(products(ctx)))) };
    service.contracts(weft_contracts::FILE_DESCRIPTOR_SET).start(settings(outbound), routes).await.unwrap()
}

fn url(running: &Running) -> String {
    format!("http://{}", running.address())
}

/// A plain channel, which carries nothing along.
async fn connect(running: &Running) -> tonic::transport::Channel {
    tonic::transport::Endpoint::try_from(url(running)).unwrap().connect().await.unwrap()
}

async fn client(running: &Running) -> ProductsClient<tonic::transport::Channel> {
    ProductsClient::new(connect(running).await)
}

fn get(id: &str) -> Request<GetRequest> {
    Request::new(GetRequest { id: id.to_owned() })
}

/// What a call to a fake does.
enum Fake {
    /// Passes it on to the next.
    Front(Box<ProductsClient<Channel>>),
    /// Notes what came along, and fails with details.
    Back(mpsc::Sender<MetadataMap>),
    /// Says that it has begun, and answers when it is told to.
    Slow {
        begun: Arc<Notify>,
        go_on: Arc<Notify>,
    },
    Panics,
}

#[tonic::async_trait]
impl Products for Fake {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Product>, Status> {
        match self {
            Fake::Front(next) => {
                let mut next = next.clone();
                // In a task of its own: the kit's spawn takes the call along.
                weft_kit::spawn(async move { next.get(request.into_inner()).await }).await.unwrap()
            }
            Fake::Back(seen) => {
                seen.send(request.metadata().clone()).await.unwrap();
                Err(status::not_found("product", &request.into_inner().id))
            }
            Fake::Slow { begun, go_on } => {
                begun.notify_one();
                go_on.notified().await;
                Ok(Response::new(Product { id: request.into_inner().id, ..Product::default() }))
            }
            Fake::Panics => panic!("as this test wants it"),
        }
    }

    type SearchStream = Pin<Box<dyn Stream<Item = Result<Product, Status>> + Send>>;

    /// Makes its call from within the stream's body, long after the method has returned.
    async fn search(&self, _: Request<SearchRequest>) -> Result<Response<Self::SearchStream>, Status> {
        let Fake::Front(next) = self else { return Err(Status::unimplemented("not asked for")) };
        let next = next.clone();
        let products = stream::iter(0..2).then(move |n| {
            let mut next = next.clone();
            async move {
                let code = next.get(get(&n.to_string())).await.unwrap_err().code();
                assert_eq!(code, Code::NotFound);
                let id = call::current().map(|call| call.request_id().to_owned()).unwrap_or_default();
                Ok(Product { id, ..Product::default() })
            }
        });
        Ok(Response::new(Box::pin(products)))
    }

    async fn import(&self, _: Request<Streaming<Product>>) -> Result<Response<ImportResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

/// A front that calls a back, and what the back sees.
async fn pair() -> (Running, Running, mpsc::Receiver<MetadataMap>) {
    let (seen, notes) = mpsc::channel(8);
    let back = start(Service::new("back"), "http://127.0.0.1:1", |_| Fake::Back(seen)).await;
    let front = |ctx: weft_kit::Context| Fake::Front(Box::new(ProductsClient::new(ctx.channel())));
    let front = start(Service::new("front"), &url(&back), front).await;
    (front, back, notes)
}

#[tokio::test]
async fn headers_of_a_call_are_passed_on_to_the_calls_made_for_it() {
    let (front, _back, mut notes) = pair().await;
    let mut request = get("tea");
    request.metadata_mut().insert("x-request-id", "r-1".parse().unwrap());
    request.metadata_mut().insert("traceparent", TRACE.parse().unwrap());
    request.set_timeout(LIMIT);
    let refused = client(&front).await.get(request).await.unwrap_err();
    assert_eq!(status::resource(&refused).unwrap().resource_name, "tea", "details pass through");

    let seen = notes.recv().await.unwrap();
    assert_eq!(seen.get("x-request-id").unwrap(), "r-1");
    let trace_id = TRACE.split('-').nth(1).unwrap();
    assert!(seen.get("traceparent").unwrap().to_str().unwrap().contains(trace_id));
    let sent = seen.get("grpc-timeout").unwrap().to_str().unwrap();
    let micros: u64 = sent.strip_suffix('u').unwrap().parse().unwrap();
    assert!(Duration::from_micros(micros) < LIMIT, "{sent} is not less than the caller's own time");

    let metrics = front.context().metrics().text();
    for side in ["server", "client"] {
        let row = format!(
            r#"rpc_{side}_requests_total{{service="front",method="shop.products.v1.Products/Get",code="NOT_FOUND"}} 1"#
        );
        assert!(metrics.contains(&row), "{row} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_stream_s_body_belongs_to_its_call_too() {
    let (front, _back, mut notes) = pair().await;
    let mut request = Request::new(SearchRequest::default());
    request.metadata_mut().insert("x-request-id", "r-2".parse().unwrap());
    let products = client(&front).await.search(request).await.unwrap().into_inner();
    let ids: Vec<_> = products.map(|product| product.unwrap().id).collect().await;
    assert_eq!(ids, ["r-2", "r-2"]);
    for _ in 0..2 {
        assert_eq!(notes.recv().await.unwrap().get("x-request-id").unwrap(), "r-2");
    }
}

#[tokio::test]
async fn a_call_with_no_time_left_is_not_sent() {
    let (_front, back, mut notes) = pair().await;
    let channel = Channel::new(url(&back).parse().unwrap(), back.context().metrics().clone());
    let mut request = get("tea");
    request.set_timeout(Duration::ZERO);
    let refused = ProductsClient::new(channel).get(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded);
    assert!(notes.try_recv().is_err());
}

#[tokio::test]
async fn a_call_is_unavailable_until_something_listens() {
    // Bound, so that nothing else gets the port, but not listening. With this option another may bind and listen.
    let held = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    held.set_reuse_address(true).unwrap();
    held.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = held.local_addr().unwrap().as_socket().unwrap();
    let metrics = weft_kit::metrics::Metrics::new("caller", &[]).unwrap();
    let mut client = ProductsClient::new(Channel::new(format!("http://{address}").parse().unwrap(), metrics));
    assert_eq!(client.get(get("tea")).await.unwrap_err().code(), Code::Unavailable);

    let (seen, _notes) = mpsc::channel(8);
    let routes = Routes::new(ProductsServer::new(Fake::Back(seen)));
    let settings = Settings::local(address, "http://127.0.0.1:1".parse().unwrap());
    let _back = Service::new("back").start(settings, |_| async { Ok(routes) }).await.unwrap();
    assert_eq!(client.get(get("tea")).await.unwrap_err().code(), Code::NotFound, "the same channel connects again");
}

#[tokio::test]
async fn only_required_dependencies_change_the_service_s_health() {
    let (database, other) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    let check = |flag: &Arc<AtomicBool>| {
        let flag = flag.clone();
        move || {
            let is_up = flag.load(Ordering::SeqCst);
            async move { if is_up { Ok(()) } else { Err(anyhow::anyhow!("down, says the test")) } }
        }
    };
    let fast = Duration::from_millis(5);
    let service = Service::new("front")
        .dependency(Dependency::required("database", check(&database)).every(fast))
        .dependency(Dependency::optional("other", check(&other)).every(fast));
    let running = start(service, "http://127.0.0.1:1", |_| Fake::Panics).await;
    let mut health = HealthClient::new(connect(&running).await);
    let mut checks = health.clone();
    let mut watch = async |name: &str| {
        let request = HealthCheckRequest { service: name.to_owned() };
        health.watch(request).await.unwrap().into_inner()
    };
    let (mut own, mut optional) = (watch("").await, watch("dependency/other").await);

    // A status may be reported more than once: statuses are read until the expected one comes.
    let until = async |watch: &mut tonic::Streaming<HealthCheckResponse>, wanted: ServingStatus| {
        while watch.message().await.unwrap().unwrap().status() != wanted {}
    };
    until(&mut own, ServingStatus::NotServing).await;
    database.store(true, Ordering::SeqCst);
    until(&mut own, ServingStatus::Serving).await;
    until(&mut optional, ServingStatus::Serving).await;
    other.store(false, Ordering::SeqCst);
    until(&mut optional, ServingStatus::NotServing).await;
    let own_now = checks.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(own_now.status(), ServingStatus::Serving, "what is optional does not matter");
    database.store(false, Ordering::SeqCst);
    until(&mut own, ServingStatus::NotServing).await;
    assert!(running.context().metrics().text().contains(r#"dependency_up{service="front",dependency="other"} 0"#));
}

#[tokio::test]
async fn a_stop_waits_for_running_calls_and_ends_health_watches() {
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = Fake::Slow { begun: begun.clone(), go_on: go_on.clone() };
    let running = start(Service::new("slow").stop_within(LIMIT), "http://127.0.0.1:1", |_| slow).await;
    let address = running.address();
    let mut health = HealthClient::new(connect(&running).await);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);

    let mut client = client(&running).await;
    let answer = tokio::spawn(async move { client.get(get("tea")).await });
    begun.notified().await;
    let mut stopping = running.context().stopping();
    let stop = tokio::spawn(running.stop());
    stopping.wait().await;
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(watch.message().await.unwrap().is_none(), "an endless watch would hold up the stop");
    assert!(!stop.is_finished());

    go_on.notify_one();
    assert_eq!(answer.await.unwrap().unwrap().into_inner().id, "tea");
    tokio::time::timeout(LIMIT, stop).await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let begun = Arc::new(Notify::new());
    let slow = Fake::Slow { begun: begun.clone(), go_on: Arc::new(Notify::new()) };
    let service = Service::new("slow").stop_within(Duration::from_millis(50));
    let running = start(service, "http://127.0.0.1:1", |_| slow).await;
    let mut client = client(&running).await;
    let answer = tokio::spawn(async move { client.get(get("tea")).await });
    begun.notified().await;
    tokio::time::timeout(LIMIT, running.stop()).await.unwrap();
    answer.abort();
}

#[tokio::test]
async fn a_panic_fails_its_own_call_only() {
    let running = start(Service::new("front"), "http://127.0.0.1:1", |_| Fake::Panics).await;
    let mut client = client(&running).await;
    for _ in 0..2 {
        assert_eq!(client.get(get("tea")).await.unwrap_err().code(), Code::Internal);
    }
    assert!(running.context().metrics().text().contains("rpc_server_in_flight{service=\"front\"} 0"));
}

#[tokio::test]
async fn a_port_in_use_is_reported_in_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = Settings::local(taken.local_addr().unwrap(), "http://127.0.0.1:1".parse().unwrap());
    let error = Service::new("front").start(settings, |_| async { Ok(Routes::default()) }).await.err().unwrap();
    assert!(matches!(error, StartError::Listen { .. }));
    let said = error.to_string();
    assert!(
        said.starts_with(&format!("can't listen on {}", taken.local_addr().unwrap())) && !said.contains('\n'),
        "{said}"
    );
}

#[tokio::test]
async fn a_service_tells_its_contracts_with_their_options() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest as Ask, server_reflection_response::MessageResponse as Answer,
    };
    const NAME: &str = weft_contracts::shop::products::v1::products_server::SERVICE_NAME;

    let service = Service::new("products").implements(&[NAME]);
    let running = start(service, "http://127.0.0.1:1", |_| Fake::Panics).await;
    let asked = [Ask::ListServices(String::new()), Ask::FileContainingSymbol(NAME.to_owned())];
    let asked = asked.map(|ask| ServerReflectionRequest { host: String::new(), message_request: Some(ask) });
    let mut client = ServerReflectionClient::new(connect(&running).await);
    let mut answers = client.server_reflection_info(stream::iter(asked)).await.unwrap().into_inner();
    let Some(Answer::ListServicesResponse(list)) = answers.next().await.unwrap().unwrap().message_response else {
        panic!("no list");
    };
    assert_eq!(list.service.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), [NAME]);
    let Some(Answer::FileDescriptorResponse(files)) = answers.next().await.unwrap().unwrap().message_response else {
        panic!("no file");
    };
    // As it is in the set: prost would drop the options, which say who may call.
    let all = weft_contracts::FILE_DESCRIPTOR_SET;
    assert!(files.file_descriptor_proto.iter().all(|file| all.windows(file.len()).any(|part| part == file)));
    assert!(!files.file_descriptor_proto.is_empty());
    running.stop().await;
}
