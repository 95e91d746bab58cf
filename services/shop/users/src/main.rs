//! The shop's users service. It keeps users in an embedded database, asks the auth service whether an e-mail address is
//! well formed, and asks the notifications service to welcome new users.

mod service;
mod store;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use weft_contracts::shop::users::v1::users_server::{SERVICE_NAME, UsersServer};
use weft_kit::{Routes, Service};

/// The shop's users service.
#[derive(Parser)]
struct Args {
    /// Where the users are kept.
    #[arg(long, value_name = "DIR", default_value = "./data/users")]
    data: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    Service::new("users")
        .contracts(weft_contracts::FILE_DESCRIPTOR_SET)
        .implements(&[SERVICE_NAME])
        .depends_on("auth")
        .depends_on("notifications")
        .serve(|ctx| async move {
            let store = store::Store::open(&args.data)?;
            let users = service::Users::new(store, ctx.channel(), ctx.stopping());
            Ok(Routes::new(UsersServer::new(users)))
        })
}
