//! gRPC server reflection for the outbound port. The answers have the contracts of the whole mesh, which the control
//! plane knows.
//!
//! The messages of `v1` and `v1alpha` are the same byte for byte, so everything is answered as `v1`.

use std::{fmt::Display, pin::Pin};

use futures_util::{Stream, StreamExt};
use prost::Message;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming, service::Routes};
use tonic_reflection::pb::{
    v1::{
        ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse, ServerReflectionRequest,
        ServerReflectionResponse, ServiceResponse,
        server_reflection_request::MessageRequest,
        server_reflection_response::MessageResponse,
        server_reflection_server::{ServerReflection, ServerReflectionServer},
    },
    v1alpha,
};
use weft_contracts::weft::discovery::v1::{
    DescribeContractRequest, DescribeContractResponse, Extension, ListContractsRequest,
    contracts_client::ContractsClient, describe_contract_request::What,
};
use weft_mesh::limits;

use super::channel::{CALL_TIMEOUT, ControlPlane};

/// Both versions of the service. They may run on any runtime.
pub(crate) fn routes(plane: ControlPlane) -> Routes {
    Routes::new(ServerReflectionServer::new(Reflection(plane.clone())))
        .add_service(v1alpha::server_reflection_server::ServerReflectionServer::new(Reflection(plane)))
}

/// See the module.
struct Reflection(ControlPlane);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ServerReflection for Reflection {
    type ServerReflectionInfoStream = Answers<ServerReflectionResponse>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        Ok(Response::new(answers(self.0.clone(), request.into_inner())))
    }
}

#[tonic::async_trait]
impl v1alpha::server_reflection_server::ServerReflection for Reflection {
    type ServerReflectionInfoStream = Answers<v1alpha::ServerReflectionResponse>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<v1alpha::ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let requests = request.into_inner().map(|request| same_in_other_version(&request?));
        let answers = answers(self.0.clone(), requests).map(|answer| same_in_other_version(&answer?));
        Ok(Response::new(Box::pin(answers)))
    }
}

fn same_in_other_version<T: Message + Default>(message: &impl Message) -> Result<T, Status> {
    T::decode(&*message.encode_to_vec()).map_err(|e| Status::internal(e.to_string()))
}

/// One answer per request, in order; the next request is read when the answer is taken.
fn answers(
    plane: ControlPlane,
    requests: impl Stream<Item = Result<ServerReflectionRequest, Status>> + Send + 'static,
) -> Answers<ServerReflectionResponse> {
    Box::pin(requests.then(move |request| {
        let plane = plane.clone();
        async move { Ok(answer(&plane, request?).await) }
    }))
}

async fn answer(plane: &ControlPlane, request: ServerReflectionRequest) -> ServerReflectionResponse {
    let answer = match request.message_request.clone() {
        Some(asked) => ask(plane, asked).await,
        None => Err(Status::invalid_argument("message_request is missing")),
    };
    let answer = answer.unwrap_or_else(|status| {
        MessageResponse::ErrorResponse(ErrorResponse {
            error_code: status.code().into(),
            error_message: status.message().to_owned(),
        })
    });
    ServerReflectionResponse {
        valid_host: request.host.clone(),
        original_request: Some(request),
        message_response: Some(answer),
    }
}

async fn ask(plane: &ControlPlane, asked: MessageRequest) -> Result<MessageResponse, Status> {
    let what = match asked {
        MessageRequest::ListServices(_) => return list(plane).await,
        MessageRequest::FileByFilename(file) => What::File(file),
        MessageRequest::FileContainingSymbol(symbol) => What::Symbol(symbol),
        MessageRequest::FileContainingExtension(asked) => {
            What::Extension(Extension { extendee: asked.containing_type, number: asked.extension_number })
        }
        MessageRequest::AllExtensionNumbersOfType(extendee) => {
            let described = describe(plane, What::Extendee(extendee.clone())).await?;
            return Ok(MessageResponse::AllExtensionNumbersResponse(ExtensionNumberResponse {
                base_type_name: extendee,
                extension_number: described.extension_numbers,
            }));
        }
    };
    let described = describe(plane, what).await?;
    let file_descriptor_proto = described.files.into_iter().map(Into::into).collect();
    Ok(MessageResponse::FileDescriptorResponse(FileDescriptorResponse { file_descriptor_proto }))
}

async fn list(plane: &ControlPlane) -> Result<MessageResponse, Status> {
    let mut client = client(plane)?;
    let contracts = limited(client.list(ListContractsRequest {})).await?.contracts;
    let service = contracts.into_iter().map(|name| ServiceResponse { name }).collect();
    Ok(MessageResponse::ListServicesResponse(ListServiceResponse { service }))
}

async fn describe(plane: &ControlPlane, what: What) -> Result<DescribeContractResponse, Status> {
    let mut client = client(plane)?;
    limited(client.describe(DescribeContractRequest { what: Some(what) })).await
}

fn client(plane: &ControlPlane) -> Result<ContractsClient<tonic::transport::Channel>, Status> {
    let channel = plane.channel().ok_or_else(|| away(&"this sidecar has no identity yet"))?;
    Ok(ContractsClient::new(channel).max_decoding_message_size(limits::CONTROL_MESSAGE_BYTES))
}

async fn limited<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) if status.code() == tonic::Code::Unavailable => Err(away(&"it can't be reached")),
        Ok(Err(status)) => Err(status),
        Err(_) => Err(away(&"it did not answer in time")),
    }
}

fn away(why: &dyn Display) -> Status {
    Status::unavailable(format!("only the control plane knows the contracts: {why}"))
}
