//! Contracts, fetched by gRPC server reflection: those of the mesh from a sidecar, or those of one service from itself.
//!
//! Asks for version 1, and for `v1alpha` if that is not there: their messages are the same byte for byte.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use prost::Message;
use prost_types::{FileDescriptorProto, MethodDescriptorProto};
use tokio::{task::spawn_blocking, time::timeout};
use tonic::{Code, Status, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_reflection::pb::{
    v1::{
        ErrorResponse, ServerReflectionRequest, ServerReflectionResponse,
        server_reflection_client::ServerReflectionClient, server_reflection_request::MessageRequest as Ask,
        server_reflection_response::MessageResponse as Answer,
    },
    v1alpha,
};
use weft_mesh::{names::shown_up_to, schema::Bounds};

/// The most characters of a server's own words in an error.
const WHY_CHARS: usize = 300;

/// Who is asked, and how much it may tell.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Teller {
    /// Its name in error messages.
    pub(crate) name: &'static str,
    /// How long the answers to one round of questions may take.
    pub(crate) patience: Duration,
    /// The most bytes of all answers together.
    pub(crate) bytes: usize,
    /// The most memory that all files together may take when they are decoded, in bytes.
    pub(crate) memory_bytes: usize,
    /// The most files: a bound against answers that never stop importing more.
    pub(crate) files: usize,
}

/// There is no server reflection, in neither version.
#[derive(Debug)]
pub(crate) struct NoReflection;

impl std::fmt::Display for NoReflection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the server there has no server reflection; --address must be that of a sidecar")
    }
}

impl std::error::Error for NoReflection {}

/// What was fetched so far.
pub(crate) struct Reflection {
    channel: Channel,
    teller: Teller,
    is_alpha: bool,
    /// The bytes of all answers so far.
    bytes: usize,
    /// What further files may take in memory.
    bounds: Bounds,
    files: BTreeMap<String, (Bytes, FileDescriptorProto)>,
    /// The files as they came: answers to several questions have the same imports.
    seen: HashSet<Bytes>,
}

/// A method of a contract.
#[derive(Debug, Clone)]
pub(crate) struct Method {
    pub(crate) name: String,
    pub(crate) path: PathAndQuery,
    /// The full name of its request.
    pub(crate) input: String,
    /// The full name of its answer.
    pub(crate) output: String,
    pub(crate) client_streaming: bool,
    pub(crate) server_streaming: bool,
}

impl Reflection {
    pub(crate) fn new(channel: Channel, teller: Teller) -> Self {
        let bounds = Bounds::new(teller.memory_bytes);
        Self { channel, teller, is_alpha: false, bytes: 0, bounds, files: BTreeMap::new(), seen: HashSet::new() }
    }

    /// The full names of all contracts, sorted.
    pub(crate) async fn services(&mut self) -> anyhow::Result<Vec<String>> {
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
    pub(crate) async fn fetch_symbol(&mut self, name: &str) -> anyhow::Result<bool> {
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
                let (who, files) = (self.teller.name, self.missing_imports().join(", "));
                bail!("{who} does not know the files that `{name}` imports: {files}");
            }
        }
    }

    /// The methods of a contract that was fetched.
    pub(crate) fn methods(&self, contract: &str) -> Vec<Method> {
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
    pub(crate) fn descriptor_set(&self) -> Vec<u8> {
        let mut set = Vec::new();
        let mut done = BTreeSet::new();
        for name in self.files.keys() {
            self.append(name, &mut done, &mut set);
        }
        set
    }

    /// Adds files that did not come from the mesh. Files that are already there stay as they are.
    pub(crate) fn add(&mut self, descriptor_set: &[u8]) {
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
                    has_file |= !files.file_descriptor_proto.is_empty();
                    for (bytes, file) in self.decode(files.file_descriptor_proto).await? {
                        self.seen.insert(bytes.clone());
                        self.files.insert(file.name().to_owned(), (bytes, file));
                        if self.files.len() > self.teller.files {
                            bail!("{} sent more than {} files", self.teller.name, self.teller.files);
                        }
                    }
                }
                Answer::ErrorResponse(error) if error.error_code == Code::NotFound as i32 => {}
                Answer::ErrorResponse(error) => bail!(self.failed(&error.error_message)),
                _ => {}
            }
        }
        Ok(has_file)
    }

    /// Decodes the new ones of files, if they take little enough memory: on a thread of their own, as that may take long.
    async fn decode(&mut self, mut files: Vec<Vec<u8>>) -> anyhow::Result<Vec<(Bytes, FileDescriptorProto)>> {
        files.retain(|bytes| !self.seen.contains(&bytes[..]));
        let mut bounds = std::mem::take(&mut self.bounds);
        let decode = move || {
            let decode = |bytes: Vec<u8>| {
                bounds.check_file(&bytes)?;
                let file = FileDescriptorProto::decode(&bytes[..])?;
                anyhow::Ok((Bytes::from(bytes), file))
            };
            let decoded: anyhow::Result<Vec<_>> = files.into_iter().map(decode).collect();
            (bounds, decoded)
        };
        let (bounds, decoded) = spawn_blocking(decode).await?;
        self.bounds = bounds;
        decoded.with_context(|| format!("{} sent a broken descriptor", self.teller.name))
    }

    async fn ask(&mut self, questions: Vec<Ask>) -> anyhow::Result<Vec<Answer>> {
        let patience = self.teller.patience;
        let outcome = match timeout(patience, self.exchange(&questions)).await {
            Ok(Err(status)) if status.code() == Code::Unimplemented && !self.is_alpha => {
                self.is_alpha = true;
                timeout(patience, self.exchange(&questions)).await
            }
            outcome => outcome,
        };
        match outcome {
            Ok(Ok(received)) => Ok(received),
            Ok(Err(status)) if status.code() == Code::Unimplemented => Err(NoReflection.into()),
            Ok(Err(status)) => bail!(self.failed(status.message())),
            Err(_) => bail!(self.failed(&format!("no answer within {patience:?}"))),
        }
    }

    fn failed(&self, why: &str) -> String {
        format!("asking {} for contracts failed: {}", self.teller.name, shown_up_to(why, WHY_CHARS))
    }

    /// Asks in one version of the service.
    async fn exchange(&mut self, questions: &[Ask]) -> Result<Vec<Answer>, Status> {
        let request = |question| ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let requests: Vec<_> = questions.iter().cloned().map(request).collect();
        let (channel, bytes) = (self.channel.clone(), self.teller.bytes);
        if self.is_alpha {
            let requests: Vec<_> = requests.iter().map(same_in_other_version).collect::<Result<_, _>>()?;
            let client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
            let mut client = client.max_decoding_message_size(bytes);
            let answers = client.server_reflection_info(futures_util::stream::iter(requests)).await?;
            let answers = answers.into_inner().map(|answer| same_in_other_version(&answer?));
            self.receive(questions.len(), answers).await
        } else {
            let mut client = ServerReflectionClient::new(channel).max_decoding_message_size(bytes);
            let answers = client.server_reflection_info(futures_util::stream::iter(requests)).await?;
            self.receive(questions.len(), answers.into_inner()).await
        }
    }

    /// Takes at most one answer for each question.
    async fn receive(
        &mut self,
        questions: usize,
        mut answers: impl Stream<Item = Result<ServerReflectionResponse, Status>> + Unpin,
    ) -> Result<Vec<Answer>, Status> {
        let mut received = Vec::new();
        while received.len() < questions
            && let Some(answer) = answers.next().await.transpose()?
        {
            self.bytes += answer.encoded_len();
            if self.bytes > self.teller.bytes {
                return Err(Status::resource_exhausted(format!("more than {} bytes", self.teller.bytes)));
            }
            // An answer without content counts, too: otherwise such answers could go on for ever.
            received.push(answer.message_response.unwrap_or(Answer::ErrorResponse(ErrorResponse {
                error_code: Code::NotFound.into(),
                error_message: String::new(),
            })));
        }
        Ok(received)
    }
}

fn same_in_other_version<T: Message + Default>(message: &impl Message) -> Result<T, Status> {
    T::decode(&*message.encode_to_vec()).map_err(|error| Status::internal(error.to_string()))
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
