use futures_util::{StreamExt, stream::BoxStream};
use prost::Message;
use tonic::{Request, Response, Status, Streaming, service::Routes};
use tonic_reflection::pb::v1::{
    ErrorResponse, FileDescriptorResponse, ListServiceResponse, ServerReflectionRequest, ServerReflectionResponse,
    ServiceResponse,
    server_reflection_request::MessageRequest as Ask,
    server_reflection_response::MessageResponse,
    server_reflection_server::{ServerReflection, ServerReflectionServer},
};

use super::*;
use crate::policy::ServicePolicy;

/// A service of gRPC on a port of its own.
async fn serve(routes: Routes) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(incoming));
    address
}

/// As [`told_by`], but on a machine that may be as busy as it likes.
async fn told(address: SocketAddr) -> Result<Told, ReflectionError> {
    fetch(address, Teller { patience: Duration::from_secs(600), ..SERVICE }).await
}

fn builder() -> tonic_reflection::server::Builder<'static> {
    let builder = tonic_reflection::server::Builder::configure();
    builder.register_encoded_file_descriptor_set(weft_contracts::FILE_DESCRIPTOR_SET)
}

#[tokio::test]
async fn a_service_is_asked_in_either_version() {
    let v1 = Routes::new(builder().build_v1().unwrap());
    let v1alpha = Routes::new(builder().build_v1alpha().unwrap());
    for routes in [v1, v1alpha] {
        let contracts = told(serve(routes).await).await.unwrap();
        assert!(contracts.implements.contains(&"shop.users.v1.Users".to_owned()), "{:?}", contracts.implements);
        let is_foreign = |name: &String| FOREIGN.iter().any(|package| name.starts_with(package));
        assert!(!contracts.implements.iter().any(is_foreign), "{:?}", contracts.implements);
        // The files stand with all that they import.
        ServicePolicy::from_descriptors(&contracts.descriptor_set, Some(&contracts.implements)).unwrap();
    }
}

#[tokio::test]
async fn it_is_told_why_nothing_is_known() {
    let silent = serve(Routes::default()).await;
    let why = told(silent).await.unwrap_err();
    assert!(matches!(why, ReflectionError::Missing(_)) && why.to_string() == "it does not answer server reflection");
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let why = told(closed).await.unwrap_err().to_string();
    assert!(why.starts_with("it can't be asked for contracts: "), "{why}");
}

/// So that one contract that is too large does not keep others from being listed.
#[tokio::test]
async fn what_was_forgotten_no_longer_counts() {
    let address = serve(Routes::new(builder().build_v1().unwrap())).await;
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let mut reflection = Reflection::new(channel, Teller { files: 2, ..SERVICE });
    let why = reflection.fetch_symbol("shop.users.v1.Users").await.unwrap_err();
    assert_eq!(why.to_string(), "it sent more than 2 files");
    assert!(reflection.fetch_symbol("google.protobuf.Duration").await.is_err(), "there is no room for another");
    reflection.forget();
    assert!(reflection.fetch_symbol("google.protobuf.Duration").await.unwrap());
}

/// Tells as much as it is asked for, and more.
#[derive(Clone, Copy)]
enum Hostile {
    /// Each file imports so many others.
    ImportsForEver(u32),
    /// Answers without end, all without content.
    AnswersForEver,
    EndsEarly,
    FailsToList,
    /// Whatever it is asked for.
    ListsOnly,
    /// The same file again, when it is asked for its import.
    ForgetsImports,
    /// After the first question it says that it has no server reflection.
    StopsToAnswer,
    /// A name that is no contract's.
    BadName,
    Garbage,
    /// Of three contracts, the files of one.
    LacksFiles,
    /// A file with a million messages, all empty.
    Bomb,
}

fn respond(content: Option<MessageResponse>) -> ServerReflectionResponse {
    ServerReflectionResponse { message_response: content, ..Default::default() }
}

fn list(name: &str) -> MessageResponse {
    MessageResponse::ListServicesResponse(ListServiceResponse { service: vec![ServiceResponse { name: name.into() }] })
}

impl Hostile {
    fn answer(self, ask: Option<Ask>) -> ServerReflectionResponse {
        let file = match (self, ask) {
            (Self::BadName, _) => return respond(Some(list("a\u{1b}[2J.B"))),
            (Self::LacksFiles, Some(Ask::ListServices(_))) => {
                let services = ["a.Lacks", "b.Whole", "c.Unknown"].map(|name| ServiceResponse { name: name.into() });
                return respond(Some(MessageResponse::ListServicesResponse(ListServiceResponse {
                    service: services.into(),
                })));
            }
            (Self::LacksFiles, ask) => {
                let file = |package: &str, service: &str, dependency: &[&str]| FileDescriptorProto {
                    name: Some(format!("{package}.proto")),
                    package: Some(package.to_owned()),
                    dependency: dependency.iter().map(|file| (*file).to_owned()).collect(),
                    service: vec![prost_types::ServiceDescriptorProto {
                        name: Some(service.to_owned()),
                        ..Default::default()
                    }],
                    ..Default::default()
                };
                match ask {
                    Some(Ask::FileContainingSymbol(name)) if name == "a.Lacks" => file("a", "Lacks", &["gone.proto"]),
                    Some(Ask::FileContainingSymbol(name)) if name == "b.Whole" => file("b", "Whole", &[]),
                    _ => {
                        let error = ErrorResponse { error_code: Code::NotFound as i32, error_message: String::new() };
                        return respond(Some(MessageResponse::ErrorResponse(error)));
                    }
                }
                .encode_to_vec()
            }
            (Self::FailsToList, _) => {
                let error = ErrorResponse { error_code: Code::Unavailable as i32, error_message: "too busy".into() };
                return respond(Some(MessageResponse::ErrorResponse(error)));
            }
            (Self::ListsOnly, _) => return respond(Some(list("a.B"))),
            (_, Some(Ask::ListServices(_))) => return respond(Some(list("a.B"))),
            (Self::ForgetsImports, _) => {
                let dependency = vec!["c.proto".to_owned()];
                FileDescriptorProto { name: Some("a.proto".into()), dependency, ..Default::default() }.encode_to_vec()
            }
            (Self::Garbage, _) => vec![0xff; 10],
            (Self::Bomb, _) => [b"\x0a\x07t.proto".to_vec(), b"\x22\x03\x0a\x01a".repeat(1_000_000)].concat(),
            (Self::ImportsForEver(count), Some(Ask::FileByFilename(name) | Ask::FileContainingSymbol(name))) => {
                let dependency = (0..count).map(|number| format!("{name}-{number}")).collect();
                FileDescriptorProto { name: Some(name), dependency, ..Default::default() }.encode_to_vec()
            }
            _ => Vec::new(),
        };
        let files = FileDescriptorResponse { file_descriptor_proto: vec![file] };
        respond(Some(MessageResponse::FileDescriptorResponse(files)))
    }
}

#[tonic::async_trait]
impl ServerReflection for Hostile {
    type ServerReflectionInfoStream = BoxStream<'static, Result<ServerReflectionResponse, Status>>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let how = *self;
        let answers = match how {
            Self::EndsEarly => futures_util::stream::empty().boxed(),
            Self::StopsToAnswer => {
                let answer = move |ask: Result<ServerReflectionRequest, Status>| match ask?.message_request {
                    Some(Ask::ListServices(_)) => Ok(respond(Some(list("a.B")))),
                    _ => Err(Status::unimplemented("not any more")),
                };
                request.into_inner().map(answer).boxed()
            }
            Self::AnswersForEver => futures_util::stream::repeat_with(|| Ok(respond(None))).boxed(),
            _ => request.into_inner().map(move |ask| Ok(how.answer(ask?.message_request))).boxed(),
        };
        Ok(Response::new(answers))
    }
}

#[tokio::test]
async fn a_hostile_service_is_given_up() {
    for (how, expected) in [
        (Hostile::ImportsForEver(10), "it sent more than 1000 files"),
        (Hostile::ImportsForEver(100), "asking it for contracts failed: more than 8388608 bytes"),
        (Hostile::AnswersForEver, "asking it for contracts failed: an answer without content"),
        (Hostile::EndsEarly, "asking it for contracts failed: its answers end too early"),
        (Hostile::FailsToList, "asking it for contracts failed: too busy"),
        (Hostile::ListsOnly, "asking it for contracts failed: an answer to another question"),
        (Hostile::ForgetsImports, "it sent other files than those that `a.B` imports: c.proto"),
        (Hostile::StopsToAnswer, "asking it for contracts failed: "),
        (Hostile::BadName, "it tells a contract with the name \"a\\u{1b}[2J.B\""),
        (Hostile::Garbage, "it sent a broken descriptor: "),
        (Hostile::Bomb, "it sent a broken descriptor: the descriptors would take more than 83886080 bytes of memory"),
    ] {
        let address = serve(Routes::new(ServerReflectionServer::new(how))).await;
        let why = told(address).await.unwrap_err().to_string();
        assert!(why.starts_with(expected), "{why}");
    }
}

/// Some servers name services of which they have no file, or not all files. The others hold all the same.
#[tokio::test]
async fn a_contract_without_all_of_its_files_is_left_out() {
    let address = serve(Routes::new(ServerReflectionServer::new(Hostile::LacksFiles))).await;
    let told = self::told(address).await.unwrap();
    assert_eq!(told.implements, ["b.Whole"]);
    assert_eq!(
        told.incomplete,
        [
            "it does not know the files that `a.Lacks` imports: gone.proto",
            "it tells the contract c.Unknown, but no file of it"
        ]
    );
    ServicePolicy::from_descriptors(&told.descriptor_set, Some(&told.implements)).unwrap();
}

/// A server of HTTP/2 that answers everything so.
async fn answers_with(status: u16, content_type: &'static str) -> SocketAddr {
    let status = http::StatusCode::from_u16(status).unwrap();
    let answer = move || async move { (status, [("content-type", content_type)], "no") };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    address
}

#[tokio::test]
async fn a_server_that_does_not_speak_grpc_has_no_reflection() {
    for (status, content_type) in [(404, ""), (405, "text/html"), (200, "text/html"), (403, "text/plain"), (501, "")] {
        let why = told(answers_with(status, content_type).await).await.unwrap_err();
        assert!(matches!(why, ReflectionError::Missing(_)), "{status}: {why}");
    }
    for status in [429, 500, 502, 503, 504] {
        let why = told(answers_with(status, "text/html").await).await.unwrap_err();
        assert!(matches!(why, ReflectionError::Failed(_)), "it may answer later: {status}: {why}");
    }
}
