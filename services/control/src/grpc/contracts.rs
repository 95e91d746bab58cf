//! `weft.discovery.v1.Contracts`: the contracts of the mesh's services and their descriptors.

use std::sync::Arc;

use prost::Message;
use tonic::{Request, Response, Status};
use weft_contracts::weft::discovery::v1::{
    DescribeContractRequest, DescribeContractResponse, ListContractsRequest, ListContractsResponse,
    ListServicesRequest, ListServicesResponse, contracts_server, describe_contract_request::What,
};
use weft_mesh::{limits, names::shown};

use super::{answers::in_turn, peer::authenticated, unread::Turn};
use crate::directory::{DescriptorQuery, Directory};

/// See the module.
pub(crate) struct ContractsService {
    pub(crate) directory: Arc<Directory>,
}

#[tonic::async_trait]
impl contracts_server::Contracts for ContractsService {
    async fn list(&self, request: Request<ListContractsRequest>) -> Result<Response<ListContractsResponse>, Status> {
        let caller = authenticated(&request)?;
        let turn = caller.unread().turn().await?;
        let sight = self.directory.sight_of(caller.id.service());
        answer(turn, ListContractsResponse { contracts: self.directory.contracts(&sight) })
    }

    async fn describe(
        &self,
        request: Request<DescribeContractRequest>,
    ) -> Result<Response<DescribeContractResponse>, Status> {
        let caller = authenticated(&request)?;
        let sight = self.directory.sight_of(caller.id.service());
        let asked = request.into_inner().what.ok_or_else(|| Status::invalid_argument("the question is missing"))?;
        // Members choose how large the answers are.
        let turn = caller.unread().turn().await?;
        let (query, what) = match asked {
            What::Extendee(extendee) => {
                check_length(&extendee)?;
                let numbers = self.directory.extension_numbers(&extendee, &sight);
                let numbers =
                    numbers.ok_or_else(|| Status::not_found(format!("no message `{}` is known", shown(&extendee))))?;
                let extension_numbers = numbers.into_iter().collect();
                return Ok(in_turn(DescribeContractResponse { files: Vec::new(), extension_numbers }, turn));
            }
            What::Symbol(symbol) => {
                check_length(&symbol)?;
                let what = format!("symbol `{}`", shown(&symbol));
                // A method may be written like in a request's path.
                (DescriptorQuery::Symbol(symbol.trim_start_matches(['.', '/']).replace('/', ".")), what)
            }
            What::File(name) => {
                check_length(&name)?;
                let what = format!("file `{}`", shown(&name));
                (DescriptorQuery::File(name), what)
            }
            What::Extension(extension) => {
                check_length(&extension.extendee)?;
                let what = format!("extension {} of `{}`", extension.number, shown(&extension.extendee));
                (DescriptorQuery::Extension(extension.extendee, extension.number), what)
            }
        };
        let files = self.directory.describe(&query, &sight).map_err(|closest| match closest {
            Some(closest) => Status::not_found(format!("no {what} is known; did you mean `{closest}`?")),
            None => Status::not_found(format!("no {what} is known")),
        })?;
        Ok(in_turn(DescribeContractResponse { files, extension_numbers: Vec::new() }, turn))
    }

    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        let caller = authenticated(&request)?;
        let turn = caller.unread().turn().await?;
        let sight = self.directory.sight_of(caller.id.service());
        answer(turn, ListServicesResponse { services: self.directory.services_in(&sight) })
    }
}

/// Names are looked up and compared as the caller wrote them, so their length is limited.
fn check_length(name: &str) -> Result<(), Status> {
    match name.len() <= limits::QUESTION_NAME_BYTES {
        true => Ok(()),
        false => Err(Status::invalid_argument(format!(
            "a name of {} bytes was asked for; allowed: up to {}",
            name.len(),
            limits::QUESTION_NAME_BYTES
        ))),
    }
}

/// An answer about the whole mesh, unless it is larger than callers accept.
fn answer<T: Message>(turn: Turn, answer: T) -> Result<Response<T>, Status> {
    match answer.encoded_len() {
        0..=limits::CONTROL_MESSAGE_BYTES => Ok(in_turn(answer, turn)),
        bytes => Err(Status::resource_exhausted(format!(
            "the answer has {bytes} bytes; at most {} fit a message",
            limits::CONTROL_MESSAGE_BYTES
        ))),
    }
}
