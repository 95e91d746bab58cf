//! The shop's orders service. It asks the users service for the buyer, and the products service for the prices. While
//! products is down it accepts orders with a price that is still open. Orders are kept in memory.

mod service;
mod store;

use std::process::ExitCode;

use weft_contracts::shop::orders::v1::orders_server::{OrdersServer, SERVICE_NAME};
use weft_kit::{Routes, Service};

fn main() -> ExitCode {
    Service::new("orders")
        .contracts(weft_contracts::FILE_DESCRIPTOR_SET)
        .implements(&[SERVICE_NAME])
        .depends_on("users")
        .depends_on("products")
        .serve(|ctx| async move { Ok(Routes::new(OrdersServer::new(service::Orders::new(ctx.channel())))) })
}
