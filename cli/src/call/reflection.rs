//! The contracts of the mesh, fetched by gRPC server reflection (version 1).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use prost::Message;
use prost_types::{FileDescriptorProto, MethodDescriptorProto};
use tokio::time::timeout;
use tonic::{Code, Status, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest as Ask, server_reflection_response::MessageResponse as Answer,
};

const LIMIT: Duration = Duration::from_secs(10);
const ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// The most files that one contract may need: a bound against answers that never stop importing more.
const MAX_FILES: usize = 10_000;

/// What was fetched so far.
pub(super) struct Reflection {
    client: ServerReflectionClient<Channel>,
    files: BTreeMap<String, (Bytes, FileDescriptorProto)>,
}

/// A method of a contract.
#[derive(Debug, Clone)]
pub(super) struct Method {
    pub(super) name: String,
    pub(super) path: PathAndQuery,
    /// The full name of its request.
    pub(super) input: String,
    /// The full name of its answer.
    pub(super) output: String,
    pub(super) client_streaming: bool,
    pub(super) server_streaming: bool,
}

impl Reflection {
    pub(super) fn new(channel: Channel) -> Self {
        let client = ServerReflectionClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
        Self { client, files: BTreeMap::new() }
    }

    /// The full names of all contracts, sorted.
    pub(super) async fn services(&mut self) -> anyhow::Result<Vec<String>> {
        let answers = self.ask(vec![Ask::ListServices(String::new())]).await?;
        let mut names = BTreeSet::new();
        for answer in answers {
            if let Answer::ListServicesResponse(list) = answer {
                names.extend(list.service.into_iter().map(|service| service.name));
            }
        }
        Ok(names.into_iter().collect())
    }

    /// Fetches the file that defines a contract or a message, with all its imports; false if the name is not known.
    pub(super) async fn fetch_symbol(&mut self, name: &str) -> anyhow::Result<bool> {
        if !self.take(vec![Ask::FileContainingSymbol(name.to_owned())]).await? {
            return Ok(false);
        }
        loop {
            let missing: Vec<Ask> = self.missing_imports().into_iter().map(Ask::FileByFilename).collect();
            if missing.is_empty() {
                return Ok(true);
            }
            let before = self.files.len();
            self.take(missing).await?;
            if self.files.len() == before {
                bail!("the mesh does not know the files that `{name}` imports: {}", self.missing_imports().join(", "));
            }
            if self.files.len() > MAX_FILES {
                bail!("`{name}` needs more than {MAX_FILES} files");
            }
        }
    }

    /// The methods of a contract that was fetched.
    pub(super) fn methods(&self, contract: &str) -> Vec<Method> {
        let full_name = |package: &str, name: &str| match package {
            "" => name.to_owned(),
            package => format!("{package}.{name}"),
        };
        let files = self.files.values().map(|(_, file)| file);
        let service = files
            .flat_map(|file| file.service.iter().map(move |service| (file.package(), service)))
            .find(|(package, service)| full_name(package, service.name()) == contract);
        let methods = service.map_or(&[][..], |(_, service)| &service.method[..]);
        methods.iter().filter_map(|method| Method::new(contract, method)).collect()
    }

    /// Everything that was fetched, as a serialized `google.protobuf.FileDescriptorSet`; each file stands after those
    /// that it imports. The bytes of the files stay as they came, so that no option is lost.
    pub(super) fn descriptor_set(&self) -> Vec<u8> {
        let mut set = Vec::new();
        let mut done = BTreeSet::new();
        for name in self.files.keys() {
            self.append(name, &mut done, &mut set);
        }
        set
    }

    /// Adds files that did not come from the mesh. Files that are already there stay as they are.
    pub(super) fn add(&mut self, descriptor_set: &[u8]) {
        let set = prost_types::FileDescriptorSet::decode(descriptor_set).unwrap_or_default();
        for file in set.file {
            let bytes = Bytes::from(file.encode_to_vec());
            self.files.entry(file.name().to_owned()).or_insert((bytes, file));
        }
    }

    fn append<'a>(&'a self, name: &'a str, done: &mut BTreeSet<&'a str>, set: &mut Vec<u8>) {
        let Some((bytes, file)) = self.files.get(name) else { return };
        if !done.insert(name) {
            return;
        }
        for import in &file.dependency {
            self.append(import, done, set);
        }
        prost::encoding::bytes::encode(1, bytes, set);
    }

    fn missing_imports(&self) -> Vec<String> {
        let imports = self.files.values().flat_map(|(_, file)| file.dependency.iter());
        let missing: BTreeSet<&String> = imports.filter(|import| !self.files.contains_key(*import)).collect();
        missing.into_iter().cloned().collect()
    }

    /// Asks, and keeps the files in the answers. Returns whether there were any.
    async fn take(&mut self, questions: Vec<Ask>) -> anyhow::Result<bool> {
        let mut has_file = false;
        for answer in self.ask(questions).await? {
            match answer {
                Answer::FileDescriptorResponse(files) => {
                    for bytes in files.file_descriptor_proto {
                        let file =
                            FileDescriptorProto::decode(&bytes[..]).context("the mesh sent a broken descriptor")?;
                        self.files.insert(file.name().to_owned(), (bytes.into(), file));
                        has_file = true;
                    }
                }
                Answer::ErrorResponse(error) if error.error_code == Code::NotFound as i32 => {}
                Answer::ErrorResponse(error) => bail!("asking the mesh for contracts failed: {}", error.error_message),
                _ => {}
            }
        }
        Ok(has_file)
    }

    async fn ask(&mut self, questions: Vec<Ask>) -> anyhow::Result<Vec<Answer>> {
        let expected = questions.len();
        let request = |question| ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let requests = futures_util::stream::iter(questions.into_iter().map(request));
        let exchange = async {
            let mut answers = self.client.server_reflection_info(requests).await?.into_inner();
            let mut received = Vec::with_capacity(expected);
            while let Some(answer) = answers.message().await? {
                received.extend(answer.message_response);
            }
            Ok::<_, Status>(received)
        };
        match timeout(LIMIT, exchange).await {
            Ok(Ok(received)) => Ok(received),
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                bail!("the server there has no server reflection; --address must be that of a sidecar")
            }
            Ok(Err(status)) => bail!("asking the mesh for contracts failed: {}", status.message()),
            Err(_) => bail!("asking the mesh for contracts failed: no answer within {LIMIT:?}"),
        }
    }
}

impl Method {
    fn new(contract: &str, method: &MethodDescriptorProto) -> Option<Self> {
        let without_dot = |name: &str| name.trim_start_matches('.').to_owned();
        Some(Self {
            name: method.name().to_owned(),
            path: format!("/{contract}/{}", method.name()).parse().ok()?,
            input: without_dot(method.input_type()),
            output: without_dot(method.output_type()),
            client_streaming: method.client_streaming(),
            server_streaming: method.server_streaming(),
        })
    }
}
