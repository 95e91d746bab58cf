//! Server reflection: with `REFLECT=CONTRACT` the program tells that contract of the shop (with `REFLECT_FILE`, the one in
//! that file at that moment; if `hang` is in it, there is no answer), and with `REFLECT_VERSION`
//! only in that version (`v1`, the default, or `v1alpha`), `REFLECT_DELAY` milliseconds after it was asked. The files are sent as they were compiled, with the options.

use std::{env, fs, time::Duration};

use bytes::Bytes;
use prost::Message;
use tonic_reflection::pb::v1::{
    ErrorResponse, FileDescriptorResponse, ListServiceResponse, ServerReflectionRequest, ServerReflectionResponse,
    ServiceResponse, server_reflection_request::MessageRequest as Ask,
    server_reflection_response::MessageResponse as Answer,
};

/// A `FileDescriptorSet` whose files are not decoded, so that their options stay.
#[derive(Clone, PartialEq, Message)]
struct Files {
    #[prost(bytes = "vec", repeated, tag = "1")]
    files: Vec<Vec<u8>>,
}

/// Whether a path is that of server reflection, in any version.
pub(crate) fn is_asked(path: &str) -> bool {
    path.starts_with("/grpc.reflection.")
}

fn contract() -> Option<String> {
    let of_file = || fs::read_to_string(env::var("REFLECT_FILE").ok()?).ok();
    env::var("REFLECT").ok().or_else(of_file)
}

/// How late the answers are.
pub(crate) fn delay() -> Duration {
    if contract().as_deref() == Some("hang") {
        return Duration::from_secs(600);
    }
    let millis = env::var("REFLECT_DELAY").ok().and_then(|millis| millis.parse().ok());
    Duration::from_millis(millis.unwrap_or_default())
}

/// The frames that answer a body, or `None` if this program has no such reflection.
pub(crate) fn answers(path: &str, body: &[u8]) -> Option<Bytes> {
    let contract = contract()?;
    let version = env::var("REFLECT_VERSION").unwrap_or_else(|_| "v1".to_owned());
    if path != format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo") {
        return None;
    }
    let (mut body, mut frames) = (body, Vec::new());
    while let Some((head, rest)) = body.split_first_chunk::<5>() {
        let (request, rest) =
            rest.split_at_checked(u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize)?;
        body = rest;
        let answer = ServerReflectionResponse {
            message_response: Some(answer(&contract, ServerReflectionRequest::decode(request).ok()?.message_request?)),
            ..Default::default()
        };
        let answer = answer.encode_to_vec();
        frames.push(0);
        frames.extend((answer.len() as u32).to_be_bytes());
        frames.extend(answer);
    }
    Some(frames.into())
}

fn answer(contract: &str, ask: Ask) -> Answer {
    let files = Files::decode(weft_contracts::FILE_DESCRIPTOR_SET).expect("the compiled contracts").files;
    let read = |file: &Vec<u8>| prost_types::FileDescriptorProto::decode(&file[..]).expect("a compiled file");
    let found = match ask {
        Ask::ListServices(_) => {
            let names = [contract, "grpc.reflection.v1.ServerReflection"];
            let service = names.map(|name| ServiceResponse { name: name.to_owned() }).to_vec();
            return Answer::ListServicesResponse(ListServiceResponse { service });
        }
        Ask::FileByFilename(name) => files.into_iter().find(|file| read(file).name() == name),
        Ask::FileContainingSymbol(symbol) if symbol == contract => files.into_iter().find(|file| {
            let file = read(file);
            file.service.iter().any(|service| format!("{}.{}", file.package(), service.name()) == symbol)
        }),
        _ => None,
    };
    match found {
        Some(file) => Answer::FileDescriptorResponse(FileDescriptorResponse { file_descriptor_proto: vec![file] }),
        None => Answer::ErrorResponse(ErrorResponse { error_code: 5, error_message: "not known".to_owned() }),
    }
}
