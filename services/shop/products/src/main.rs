//! The shop's products service: what is for sale. The catalogue is in memory and starts with a dozen products. Messages
//! may be compressed with gzip, either way.

mod service;
mod store;

use std::process::ExitCode;

use tonic::codec::CompressionEncoding;
use weft_contracts::shop::products::v1::products_server::{ProductsServer, SERVICE_NAME};
use weft_kit::{Routes, Service};

fn main() -> ExitCode {
    let service = Service::new("products").contracts(weft_contracts::FILE_DESCRIPTOR_SET).implements(&[SERVICE_NAME]);
    service.serve(|_| async {
        let products = service::Products::new(store::Store::with_seed());
        let server = ProductsServer::new(products);
        Ok(Routes::new(server.accept_compressed(CompressionEncoding::Gzip).send_compressed(CompressionEncoding::Gzip)))
    })
}
