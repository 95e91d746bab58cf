//! The shop's products service: what is for sale. The catalogue is in memory and starts with a dozen products.

mod service;
mod store;

use std::process::ExitCode;

use weft_contracts::shop::products::v1::products_server::ProductsServer;
use weft_kit::{Routes, Service};

fn main() -> ExitCode {
    Service::new("products").contracts(weft_contracts::FILE_DESCRIPTOR_SET).serve(|_| async {
        let products = service::Products::new(store::Store::with_seed());
        Ok(Routes::new(ProductsServer::new(products)))
    })
}
