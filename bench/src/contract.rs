//! The contract of the echo server: its names, and its descriptors, from which the sidecars take deadlines and the
//! names of methods in metrics.
//!
//! The messages here are the necessary parts of `google/protobuf/descriptor.proto`, with a field for Weft's option: the
//! types of `prost-types` do not know custom options and would drop it.

use prost::Message;
use weft_contracts::{
    FILE_DESCRIPTOR_SET,
    weft::options::v1::{Access, MethodOptions, ServiceOptions},
};

/// The path of ordinary calls, which echo one message.
pub(crate) const UNARY: &str = "/bench.v1.Echo/Unary";
/// Answers with [`crate::cases::STREAM_MESSAGES`] messages.
pub(crate) const STREAM: &str = "/bench.v1.Echo/Stream";
/// Echoes messages as they come. This method and the next two are in no contract: they run until the caller ends them.
pub(crate) const CHAT: &str = "/bench.v1.Echo/Chat";
/// Sends without end.
pub(crate) const POUR: &str = "/bench.v1.Echo/Pour";
/// Never reads its request, and never answers.
pub(crate) const DEAF: &str = "/bench.v1.Echo/Deaf";

/// The path of one of many methods.
pub(crate) fn method(index: usize) -> String {
    if index == 0 { UNARY.to_owned() } else { format!("{UNARY}{index}") }
}

#[derive(Message)]
struct FileSet {
    /// Serialized.
    #[prost(bytes = "vec", repeated, tag = "1")]
    file: Vec<Vec<u8>>,
}

#[derive(Message)]
struct File {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    package: String,
    #[prost(string, repeated, tag = "3")]
    dependency: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    message_type: Vec<MessageType>,
    #[prost(message, repeated, tag = "6")]
    service: Vec<Service>,
    #[prost(string, tag = "12")]
    syntax: String,
}

#[derive(Message)]
struct MessageType {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    method: Vec<Method>,
    #[prost(message, optional, tag = "3")]
    options: Option<Options>,
}

#[derive(Message)]
struct Options {
    #[prost(message, optional, tag = "50901")]
    weft: Option<ServiceOptions>,
}

#[derive(Message)]
struct OptionsOfMethod {
    #[prost(message, optional, tag = "50901")]
    weft: Option<MethodOptions>,
}

#[derive(Message)]
struct Method {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    input_type: String,
    #[prost(string, tag = "3")]
    output_type: String,
    #[prost(message, optional, tag = "4")]
    options: Option<OptionsOfMethod>,
    #[prost(bool, tag = "6")]
    server_streaming: bool,
}

/// The file that defines Weft's options. `IMPORTS` also has the files that it imports.
const OPTIONS: &str = "weft/options/v1/options.proto";
const IMPORTS: [&str; 3] = ["google/protobuf/descriptor.proto", "google/protobuf/duration.proto", OPTIONS];

/// A serialized `google.protobuf.FileDescriptorSet`: a service with so many unary methods, which may take 15 s, and one
/// that streams. With a `caller`, each method has a rule that allows it to call, and nobody else.
pub(crate) fn descriptors(methods: usize, caller: Option<&str>) -> Vec<u8> {
    let name = |path: String| path.rsplit('/').next().unwrap_or_default().to_owned();
    let message = || ".bench.v1.Message".to_owned();
    let rule = |caller: &str| {
        let access = Some(Access { allow: vec![caller.to_owned()], audit: false });
        OptionsOfMethod { weft: Some(MethodOptions { access, ..MethodOptions::default() }) }
    };
    let method = |path: String| Method {
        options: caller.map(rule),
        server_streaming: path == STREAM,
        name: name(path),
        input_type: message(),
        output_type: message(),
    };
    let timeout = Some(prost_types::Duration { seconds: 15, nanos: 0 });
    let service = Service {
        name: "Echo".to_owned(),
        method: (0..methods).map(self::method).chain([STREAM.to_owned()]).map(method).collect(),
        options: Some(Options { weft: Some(ServiceOptions { timeout, ..ServiceOptions::default() }) }),
    };
    let file = File {
        name: "bench/v1/echo.proto".to_owned(),
        package: "bench.v1".to_owned(),
        dependency: vec![OPTIONS.to_owned()],
        message_type: vec![MessageType { name: "Message".to_owned() }],
        service: vec![service],
        syntax: "proto3".to_owned(),
    };
    let known = FileSet::decode(FILE_DESCRIPTOR_SET).expect("the contracts are a descriptor set");
    let is_imported =
        |bytes: &Vec<u8>| File::decode(&bytes[..]).is_ok_and(|file| IMPORTS.contains(&file.name.as_str()));
    let imports = known.file.into_iter().filter(is_imported);
    FileSet { file: imports.chain([file.encode_to_vec()]).collect() }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weft_mesh::policy::ServicePolicy;

    use super::*;

    #[test]
    fn the_mesh_reads_the_methods_and_their_timeouts() {
        let policy = ServicePolicy::from_descriptors(&descriptors(100, Some("client")), None).unwrap();
        assert_eq!(policy.contracts.len(), 1);
        assert_eq!(policy.contracts[0].methods.len(), 101);
        let timeout = |method| policy.method("bench.v1.Echo", method).unwrap().timeout.as_ref().map(|t| t.value);
        assert_eq!(timeout("Unary"), Some(Duration::from_secs(15)));
        assert_eq!(timeout("Unary99"), Some(Duration::from_secs(15)));
        assert_eq!(timeout("Stream"), None);
        let access = policy.method("bench.v1.Echo", "Unary99").unwrap().access.as_ref();
        assert_eq!(access.map(|access| access.value.callers.to_string()), Some("client".to_owned()));
    }
}
