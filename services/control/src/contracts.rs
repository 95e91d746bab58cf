//! `weft.discovery.v1.Contracts`: what the mesh's services speak.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_contracts::weft::discovery::v1::{
    DescribeContractRequest, DescribeContractResponse, ListContractsRequest, ListContractsResponse,
    ListServicesRequest, ListServicesResponse, contracts_server, describe_contract_request::What,
};

use crate::{
    dashboard::Catalog,
    directory::{Directory, Question},
    peer::authenticated,
};

/// See the module.
pub(crate) struct ContractsService {
    pub(crate) directory: Arc<Directory>,
}

#[tonic::async_trait]
impl contracts_server::Contracts for ContractsService {
    async fn list(&self, request: Request<ListContractsRequest>) -> Result<Response<ListContractsResponse>, Status> {
        authenticated(&request)?;
        Ok(Response::new(ListContractsResponse { contracts: self.directory.contracts() }))
    }

    async fn describe(
        &self,
        request: Request<DescribeContractRequest>,
    ) -> Result<Response<DescribeContractResponse>, Status> {
        authenticated(&request)?;
        let asked = request.into_inner().what.ok_or_else(|| Status::invalid_argument("nothing is asked for"))?;
        let (question, what) = match asked {
            What::Extendee(extendee) => {
                let numbers = self.directory.extension_numbers(&extendee);
                let numbers = numbers.ok_or_else(|| Status::not_found(format!("no message `{extendee}` is known")))?;
                let extension_numbers = numbers.into_iter().collect();
                return Ok(Response::new(DescribeContractResponse { files: Vec::new(), extension_numbers }));
            }
            What::Symbol(symbol) => {
                let what = format!("symbol `{symbol}`");
                // A method may be written as in a request's path.
                (Question::Symbol(symbol.trim_start_matches(['.', '/']).replace('/', ".")), what)
            }
            What::File(name) => {
                let what = format!("file `{name}`");
                (Question::File(name), what)
            }
            What::Extension(extension) => {
                let what = format!("extension {} of `{}`", extension.number, extension.extendee);
                (Question::Extension(extension.extendee, extension.number), what)
            }
        };
        let files = self.directory.describe(&question).map_err(|closest| match closest {
            Some(closest) => Status::not_found(format!("no {what} is known; did you mean `{closest}`?")),
            None => Status::not_found(format!("no {what} is known")),
        })?;
        Ok(Response::new(DescribeContractResponse { files, extension_numbers: Vec::new() }))
    }

    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        authenticated(&request)?;
        Ok(Response::new(ListServicesResponse { services: self.directory.services() }))
    }
}
