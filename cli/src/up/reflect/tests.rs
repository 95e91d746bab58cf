use std::{collections::BTreeMap, net::SocketAddr};

use futures_util::{StreamExt, stream::BoxStream};
use prost::Message;
use prost_types::FileDescriptorProto;
use tonic::{Request, Response, Status, Streaming, service::Routes};
use tonic_reflection::pb::v1::{
    FileDescriptorResponse, ListServiceResponse, ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
    server_reflection_request::MessageRequest as Ask,
    server_reflection_response::MessageResponse,
    server_reflection_server::{ServerReflection, ServerReflectionServer},
};

use super::*;

/// A service of gRPC on a port of its own.
async fn serve(routes: Routes) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(incoming));
    address
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
        let contracts = ask(serve(routes).await).await.unwrap();
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
    assert_eq!(ask(silent).await.unwrap_err(), "it does not answer server reflection");
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let why = ask(closed).await.unwrap_err();
    assert!(why.starts_with("it can't be asked for contracts: "), "{why}");
}

/// Tells as much as it is asked for, and more.
#[derive(Clone, Copy)]
enum Hostile {
    /// Each file imports so many others.
    ImportsForEver(u32),
    /// Answers without end, all without content.
    AnswersForEver,
    /// A name that is no contract's.
    BadName,
    Garbage,
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
            (_, Some(Ask::ListServices(_))) => return respond(Some(list("a.B"))),
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
        (Hostile::AnswersForEver, "it tells no contract of its own by server reflection"),
        (Hostile::BadName, "it tells a contract with the name \"a\\u{1b}[2J.B\""),
        (Hostile::Garbage, "it sent a broken descriptor: "),
        (Hostile::Bomb, "it sent a broken descriptor: the descriptors would take more than 83886080 bytes of memory"),
    ] {
        let address = serve(Routes::new(ServerReflectionServer::new(how))).await;
        let why = ask(address).await.unwrap_err();
        assert!(why.starts_with(expected), "{why}");
    }
}

/// A contract `NAME` with a timeout of so many seconds.
fn contract(name: &str, seconds: i64) -> Told {
    let source = format!(
        "syntax = \"proto3\"; import \"weft/options/v1/options.proto\"; package p; message M {{}}\n\
         service {name} {{ rpc Do(M) returns (M) {{ option (weft.options.v1.method) = {{ timeout: {{ seconds: {seconds} }} }}; }} }}"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.proto");
    std::fs::write(&path, source).unwrap();
    let proto = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let mut compiler = protox::Compiler::new([folder.path(), &proto]).unwrap();
    compiler.include_imports(true).open_file(&path).unwrap();
    Told { descriptor_set: compiler.encode_file_descriptor_set(), implements: vec![format!("p.{name}")] }
}

fn with(mut contracts: Told, further: &str) -> Told {
    contracts.implements.push(further.to_owned());
    contracts
}

#[test]
fn what_belongs_to_another_service_is_not_given() {
    let mut owners = BTreeMap::from([("p.Listed".to_owned(), "users".to_owned())]);
    let (given, text) = judge("first", Ok(with(contract("A", 1), "p.Listed")), &mut owners).unwrap();
    assert_eq!(given.implements, ["p.A"]);
    assert_eq!(text, "p.A, told by server reflection; p.Listed belongs to users");
    let refused = judge("second", Ok(contract("A", 1)), &mut owners).unwrap_err();
    assert_eq!(refused, "no contract of its own: p.A belongs to first");
    assert_eq!(owners["p.Listed"], "users");
}

#[test]
fn broken_descriptors_give_nothing_and_take_nothing() {
    let mut owners = BTreeMap::new();
    let negative = judge("first", Ok(contract("A", -1)), &mut owners).unwrap_err();
    assert!(negative.starts_with("no contract known: what it tells by server reflection is not valid: "), "{negative}");
    let undefined = judge("first", Ok(with(contract("A", 1), "p.B")), &mut owners).unwrap_err();
    assert!(undefined.contains("the descriptors define no service `p.B`"), "{undefined}");
    let silent = judge("first", Err("it does not answer server reflection".to_owned()), &mut owners).unwrap_err();
    assert_eq!(silent, "no contract known: no .proto files in mesh.yaml, and it does not answer server reflection");
    assert_eq!(owners, BTreeMap::new());
    judge("second", Ok(contract("A", 1)), &mut owners).unwrap();
}

#[tokio::test]
async fn a_service_waits_for_those_that_stand_before_it() {
    let (sender, told) = watch::channel(Vec::new());
    let mut notes = Notes { asked: ["a", "b", "c"].map(str::to_owned).to_vec(), told };
    let note = |service: &str| Note { service: service.to_owned(), text: "known".to_owned(), contracts: None };
    sender.send_modify(|notes| notes.push(note("a")));
    let (first, count) = notes.first(|service| service != "b", Duration::MAX).await;
    let texts: Vec<&str> = first.iter().map(|note| note.text.as_str()).collect();
    assert_eq!(count, 1);
    assert_eq!(
        texts,
        [
            "known",
            "no contract known yet: it is asked by server reflection once it is up",
            "no contract known yet: b stands before it in mesh.yaml and is asked first"
        ]
    );
}
