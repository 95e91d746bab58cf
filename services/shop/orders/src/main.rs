//! The shop's orders service: who bought what. It asks users who buys and products what things cost; while products is
//! down it takes orders at a price to be told later. Orders are in memory.

mod service;
mod store;

use std::process::ExitCode;

use weft_contracts::shop::orders::v1::orders_server::OrdersServer;
use weft_kit::{Routes, Service};

fn main() -> ExitCode {
    Service::new("orders")
        .contracts(weft_contracts::FILE_DESCRIPTOR_SET)
        .depends_on("users")
        .depends_on("products")
        .serve(|ctx| async move { Ok(Routes::new(OrdersServer::new(service::Orders::new(ctx.channel())))) })
}
