//! Contracts, fetched by gRPC server reflection: those of the mesh from a sidecar, or those of one service from itself
//! ([`told_by`]).
//!
//! Asks for version 1, and for `v1alpha` if that is not there: their messages are the same byte for byte. Source: [gRPC server
//! reflection](https://github.com/grpc/grpc/blob/master/doc/server-reflection.md).

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use crate::{
    limits,
    names::{is_contract_name, shown_up_to},
    schema::Bounds,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::uri::PathAndQuery;
use prost::Message;
use prost_types::{FileDescriptorProto, MethodDescriptorProto};
use tokio::{task::spawn_blocking, time::timeout};
use tonic::{
    Code, Status,
    body::Body,
    codegen::Service,
    transport::{Channel, Endpoint},
};
use tonic_reflection::pb::{
    v1::{
        ServerReflectionRequest, ServerReflectionResponse, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest as Ask, server_reflection_response::MessageResponse as Answer,
    },
    v1alpha,
};

/// The most characters of a server's own words in an error.
const WHY_CHARS: usize = 300;

/// Who is asked, and how much it may tell.
#[derive(Debug, Clone, Copy)]
pub struct Teller {
    /// Its name in error messages.
    pub name: &'static str,
    /// How long the answers to one round of questions may take.
    pub patience: Duration,
    /// The most bytes of all answers together.
    pub bytes: usize,
    /// The most memory that all files together may take when they are decoded, in bytes.
    pub memory_bytes: usize,
    /// The most files: a bound against answers that never stop importing more.
    pub files: usize,
}

/// Why contracts could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum ReflectionError {
    /// There is no server reflection, in neither version.
    #[error("{0} does not answer server reflection")]
    Missing(&'static str),
    /// It does not have all files that define what was asked for.
    #[error("{0}")]
    Incomplete(String),
    /// It was asked in vain, or its answers can't be used.
    #[error("{0}")]
    Failed(String),
}

use ReflectionError::{Failed, Incomplete, Missing};

/// A service of the user's own. Its answers are read with bounds like those of anybody.
const SERVICE: Teller = Teller {
    name: "it",
    patience: Duration::from_secs(5),
    bytes: limits::DESCRIPTOR_SET_BYTES,
    memory_bytes: limits::DESCRIPTOR_MEMORY_BYTES,
    files: 1_000,
};
const OTHER_ANSWER: &str = "an answer to another question";
/// The most contracts of one service.
const MAX_CONTRACTS: usize = 100;
/// How long one service may take to tell everything.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// Packages whose contracts are not a service's own.
const FOREIGN: [&str; 3] = ["google.", "grpc.", "weft."];

/// What a service has told of its contracts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// A serialized `google.protobuf.FileDescriptorSet`, as in the answers: with every option.
    pub descriptor_set: Vec<u8>,
    /// The contracts that it implements, and of which it has all files. There may be none.
    pub implements: Vec<String>,
    /// Why it lacks files of others that it implements, for people.
    pub incomplete: Vec<String>,
}

/// Asks a service itself, at the port where it serves gRPC without TLS. The error says for people why no contract is known,
/// and calls the service "it".
///
/// # Errors
/// It can't be reached, has no server reflection, or does not tell what it has within the bounds and within 10 s.
pub async fn told_by(address: SocketAddr) -> Result<Told, ReflectionError> {
    let limited = timeout(ASK_LIMIT, fetch(address, SERVICE)).await;
    limited.unwrap_or_else(|_| Err(Failed(format!("it has not told everything within {ASK_LIMIT:?}"))))
}

async fn fetch(address: SocketAddr, teller: Teller) -> Result<Told, ReflectionError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| Failed(e.to_string()))?;
    let channel = endpoint.connect_timeout(teller.patience).connect().await;
    let channel = channel.map_err(|e| Failed(format!("it can't be asked for contracts: {}", with_sources(&e))))?;
    let mut reflection = Reflection::new(channel, teller);
    let names = reflection.services().await?;
    let (mut implements, mut incomplete) = (Vec::new(), Vec::new());
    for name in names.into_iter().filter(|name| !FOREIGN.iter().any(|package| name.starts_with(package))) {
        if !is_contract_name(&name) {
            return Err(Failed(format!("it tells a contract with the name \"{}\"", shown_up_to(&name, WHY_CHARS))));
        }
        if implements.len() + incomplete.len() == MAX_CONTRACTS {
            return Err(Failed(format!("it tells more than {MAX_CONTRACTS} contracts")));
        }
        match reflection.fetch_symbol(&name).await {
            Ok(true) => implements.push(name),
            Ok(false) => incomplete.push(format!("it tells the contract {name}, but no file of it")),
            Err(Incomplete(why)) => incomplete.push(why),
            Err(error) => return Err(error),
        }
    }
    Ok(Told { descriptor_set: reflection.descriptor_set(), implements, incomplete })
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    shown_up_to(&text, WHY_CHARS)
}

/// A client of server reflection, with what it has fetched so far.
pub struct Reflection {
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
pub struct Method {
    /// Without its contract: `Get`.
    pub name: String,
    /// `/shop.users.v1.Users/Get`
    pub path: PathAndQuery,
    /// The full name of its request.
    pub input: String,
    /// The full name of its answer.
    pub output: String,
    /// Whether there may be several requests in a call.
    pub client_streaming: bool,
    /// Whether there may be several answers in a call.
    pub server_streaming: bool,
}

impl Reflection {
    /// Asks over this channel, with these bounds.
    pub fn new(channel: Channel, teller: Teller) -> Self {
        let bounds = Bounds::new(teller.memory_bytes);
        Self { channel, teller, is_alpha: false, bytes: 0, bounds, files: BTreeMap::new(), seen: HashSet::new() }
    }

    /// Forgets what was fetched. It no longer counts against the bounds.
    pub fn forget(&mut self) {
        *self = Self { is_alpha: self.is_alpha, ..Self::new(self.channel.clone(), self.teller) };
    }

    /// The full names of all contracts, sorted.
    ///
    /// # Errors
    /// As all questions: it did not answer in time, not with what was asked for, or with more than it may.
    pub async fn services(&mut self) -> Result<Vec<String>, ReflectionError> {
        let mut names = BTreeSet::new();
        for answer in self.ask(vec![Ask::ListServices(String::new())]).await? {
            match answer {
                Answer::ListServicesResponse(list) => {
                    names.extend(list.service.into_iter().map(|service| service.name))
                }
                Answer::ErrorResponse(error) => return Err(self.failed(&error.error_message)),
                _ => return Err(self.failed(OTHER_ANSWER)),
            }
        }
        Ok(names.into_iter().collect())
    }

    /// Fetches the file that defines a contract or a message, with all its imports; false if it says that it does not know
    /// the name.
    ///
    /// # Errors
    /// As [`Self::services`].
    pub async fn fetch_symbol(&mut self, name: &str) -> Result<bool, ReflectionError> {
        let before: BTreeSet<String> = self.files.keys().cloned().collect();
        if self.take(vec![Ask::FileContainingSymbol(name.to_owned())]).await? > 0 {
            return Ok(false);
        }
        loop {
            let missing: Vec<Ask> = self.missing_imports().into_iter().map(Ask::FileByFilename).collect();
            let (asked, count) = (missing.len(), self.files.len());
            if missing.is_empty() {
                return Ok(true);
            }
            let unknown = self.take(missing).await?;
            if self.files.len() > count {
                continue;
            }
            let (who, files) = (self.teller.name, self.missing_imports().join(", "));
            // Files without their imports define nothing.
            self.files.retain(|name, (bytes, _)| before.contains(name) || !self.seen.remove(bytes));
            return Err(match unknown == asked {
                true => Incomplete(format!("{who} does not know the files that `{name}` imports: {files}")),
                false => Failed(format!("{who} sent other files than those that `{name}` imports: {files}")),
            });
        }
    }

    /// The methods of a contract that was fetched.
    pub fn methods(&self, contract: &str) -> Vec<Method> {
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
    pub fn descriptor_set(&self) -> Vec<u8> {
        let mut set = Vec::new();
        let mut done = BTreeSet::new();
        for name in self.files.keys() {
            self.append(name, &mut done, &mut set);
        }
        set
    }

    /// Adds files that did not come from the mesh. Files that are already there stay as they are.
    pub fn add(&mut self, descriptor_set: &[u8]) {
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

    /// Asks, and keeps the files in the answers. Returns how many of the names are not known.
    async fn take(&mut self, questions: Vec<Ask>) -> Result<usize, ReflectionError> {
        let mut unknown = 0;
        for answer in self.ask(questions).await? {
            match answer {
                Answer::FileDescriptorResponse(files) if !files.file_descriptor_proto.is_empty() => {
                    for (bytes, file) in self.decode(files.file_descriptor_proto).await? {
                        self.seen.insert(bytes.clone());
                        self.files.insert(file.name().to_owned(), (bytes, file));
                        if self.files.len() > self.teller.files {
                            let (who, most) = (self.teller.name, self.teller.files);
                            return Err(Failed(format!("{who} sent more than {most} files")));
                        }
                    }
                }
                Answer::ErrorResponse(error) if error.error_code == Code::NotFound as i32 => unknown += 1,
                Answer::ErrorResponse(error) => return Err(self.failed(&error.error_message)),
                _ => return Err(self.failed(OTHER_ANSWER)),
            }
        }
        Ok(unknown)
    }

    /// Decodes the new ones of files, if they take little enough memory: on a thread of their own, as that may take long.
    async fn decode(&mut self, mut files: Vec<Vec<u8>>) -> Result<Vec<(Bytes, FileDescriptorProto)>, ReflectionError> {
        files.retain(|bytes| !self.seen.contains(&bytes[..]));
        let mut bounds = std::mem::take(&mut self.bounds);
        let decode = move || {
            let decode = |bytes: Vec<u8>| {
                bounds.check_file(&bytes).map_err(|error| error.to_string())?;
                let file = FileDescriptorProto::decode(&bytes[..]).map_err(|error| error.to_string())?;
                Ok((Bytes::from(bytes), file))
            };
            let decoded: Result<Vec<_>, String> = files.into_iter().map(decode).collect();
            (bounds, decoded)
        };
        let (bounds, decoded) = spawn_blocking(decode).await.map_err(|error| Failed(error.to_string()))?;
        self.bounds = bounds;
        decoded.map_err(|why| Failed(format!("{} sent a broken descriptor: {why}", self.teller.name)))
    }

    async fn ask(&mut self, questions: Vec<Ask>) -> Result<Vec<Answer>, ReflectionError> {
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
            Ok(Err(status)) if status.code() == Code::Unimplemented && self.bytes == 0 => {
                Err(Missing(self.teller.name))
            }
            Ok(Err(status)) => Err(self.failed(status.message())),
            Err(_) => Err(self.failed(&format!("no answer within {patience:?}"))),
        }
    }

    fn failed(&self, why: &str) -> ReflectionError {
        Failed(format!("asking {} for contracts failed: {}", self.teller.name, shown_up_to(why, WHY_CHARS)))
    }

    /// Asks in one version of the service.
    async fn exchange(&mut self, questions: &[Ask]) -> Result<Vec<Answer>, Status> {
        let request = |question| ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let requests: Vec<_> = questions.iter().cloned().map(request).collect();
        let (channel, bytes) = (OnlyGrpc(self.channel.clone()), self.teller.bytes);
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

    /// Takes one answer for each question.
    async fn receive(
        &mut self,
        questions: usize,
        mut answers: impl Stream<Item = Result<ServerReflectionResponse, Status>> + Unpin,
    ) -> Result<Vec<Answer>, Status> {
        let mut received = Vec::new();
        while received.len() < questions {
            let answer = answers.next().await.transpose()?;
            let answer = answer.ok_or_else(|| Status::data_loss("its answers end too early"))?;
            self.bytes += answer.encoded_len();
            if self.bytes > self.teller.bytes {
                return Err(Status::resource_exhausted(format!("more than {} bytes", self.teller.bytes)));
            }
            received.push(answer.message_response.ok_or_else(|| Status::data_loss("an answer without content"))?);
        }
        Ok(received)
    }
}

/// A channel to what may not speak gRPC at all, as a server of plain HTTP/2. It is as if that said `UNIMPLEMENTED`, unless its
/// status says that it may answer otherwise later.
#[derive(Clone)]
struct OnlyGrpc(Channel);

impl Service<http::Request<Body>> for OnlyGrpc {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = Service::call(&mut self.0, request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(if speaks_grpc(&answer) { answer } else { Status::unimplemented("it does not speak gRPC").into_http() })
        })
    }
}

fn speaks_grpc(answer: &http::Response<Body>) -> bool {
    let is_type = |kind: &http::HeaderValue| kind.as_bytes().starts_with(b"application/grpc");
    let is_transient = matches!(answer.status().as_u16(), 408 | 425 | 429 | 500 | 502..=599);
    is_transient || answer.headers().get(http::header::CONTENT_TYPE).is_some_and(is_type)
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
