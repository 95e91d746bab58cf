//! The shop's auth service: checks e-mail addresses, and signs tokens for users.

mod email;
mod service;
mod tokens;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use weft_contracts::shop::auth::v1::auth_server::{AuthServer, SERVICE_NAME};
use weft_kit::{Routes, Service};

/// The shop's auth service.
#[derive(Parser)]
struct Args {
    /// The EC P-256 key that tokens are signed with, as PKCS#8 in PEM. Without it a key is made at the start, and
    /// tokens are valid only until the service ends.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let service = Service::new("auth").contracts(weft_contracts::FILE_DESCRIPTOR_SET).implements(&[SERVICE_NAME]);
    service.serve(|_| async move {
        let tokens = match &args.key {
            Some(file) => tokens::Tokens::open(file)?,
            None => tokens::Tokens::with_new_key()?,
        };
        Ok(Routes::new(AuthServer::new(service::Auth::new(tokens))))
    })
}
