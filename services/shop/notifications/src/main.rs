//! The shop's notifications service: messages to users. The latest ones are kept in memory.

mod service;
mod store;

use std::process::ExitCode;

use weft_contracts::shop::notifications::v1::notifications_server::{NotificationsServer, SERVICE_NAME};
use weft_kit::{Routes, Service};

fn main() -> ExitCode {
    Service::new("notifications")
        .contracts(weft_contracts::FILE_DESCRIPTOR_SET)
        .implements(&[SERVICE_NAME])
        .serve(|_| async { Ok(Routes::new(NotificationsServer::new(service::Notifications::default()))) })
}
