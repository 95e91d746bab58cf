//! `weft call`: any method of any contract in the mesh, with JSON in and out.
//!
//! The contracts come from the mesh itself ([`weft_mesh::reflection`]). The [`input`] is read value by value, and each value is
//! sent at once, so all four kinds of method share one code path. [`output`] prints what is not an answer: headers and
//! errors.

mod codec;
mod input;
mod list;
mod metadata;
mod output;
mod schema;
mod trace;

use std::{io::Write, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{sync::oneshot, time::timeout};
use tonic::{
    Code, Request, Status, Streaming, TimeoutExpired,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};
use weft_mesh::{
    errors::GRPC_CODES,
    names::{closest, port},
    reflection::{self, Reflection, ReflectionError, Teller},
};

use self::{
    codec::RawCodec,
    output::Printer,
    schema::Messages,
    trace::{CallTrace, Server},
};
use crate::{console::note, up::run_file::Run};

const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How long to wait after a call's deadline. The mesh ends the call at the deadline, unless the mesh itself hangs.
const DEADLINE_GRACE: Duration = Duration::from_secs(2);
/// The largest message that is accepted.
const MESSAGE_BYTES: usize = 256 * 1024 * 1024;
/// After a gRPC error, the exit code is this plus the number of the status.
const EXIT_STATUS_BASE: u8 = 64;
/// The exit code that shells report for a program that Ctrl-C has ended.
const EXIT_INTERRUPTED: u8 = 130;
/// The contracts of the whole mesh, as a sidecar tells them.
const MESH: Teller = Teller {
    name: "the mesh",
    patience: Duration::from_secs(10),
    bytes: 256 * 1024 * 1024,
    memory_bytes: 1024 * 1024 * 1024,
    files: 10_000,
};

const AFTER_HELP: &str = "\
Examples:
  weft call                                   list all methods in the mesh
  weft call shop.users.v1.Users               list the methods of one contract
  weft call shop.users.v1.Users/Get '{\"id\":\"1\"}'
  weft call shop.users.v1.Users/Watch         print each answer, until Ctrl-C
  weft call shop.products.v1.Products/Import -d - < products.jsonl
  weft call shop.users.v1.Users/List -v --timeout 500ms -H 'x-tenant: a'

Answers go to standard output, everything else to standard error. The exit code is 0 for success; 64 plus the
number of the status for a gRPC error (NOT_FOUND is 5: 69); 1 if there was no answer at all; 130 after Ctrl-C.";

/// The flags of `weft call`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The method, such as shop.users.v1.Users/Create; without it, or with only a contract, the methods are listed
    #[arg(value_name = "SERVICE/METHOD")]
    method: Option<String>,
    /// The request as JSON; for a method that takes a stream, several values one after the other [default: {}]
    #[arg(value_name = "JSON", conflicts_with = "data")]
    json: Option<String>,
    /// The request as JSON, or where to read it: @FILE, or - for standard input
    #[arg(long, short, value_name = "JSON|@FILE|-")]
    data: Option<String>,
    /// Send a header; if its name ends in -bin, the value is base64
    #[arg(long = "header", short = 'H', value_name = "KEY: VALUE")]
    headers: Vec<String>,
    /// How long the call may take: 300ms, 2s, 1m
    #[arg(long, short, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// The service to call, if more than one implements the contract: users or users.shop
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// The sidecar to call through [default: that of the running `weft up`, else http://127.0.0.1:15001]
    #[arg(long, env = "WEFT_OUTBOUND", value_name = "URL")]
    address: Option<String>,
    /// The dashboard that shows the trace [default: that of the running `weft up`, else http://127.0.0.1:15080]
    #[arg(long, env = "WEFT_DASHBOARD", value_name = "URL")]
    dashboard: Option<String>,
    /// Print each answer on one line
    #[arg(long, short)]
    compact: bool,
    /// Show the headers that are sent, and the headers and trailers that come back
    #[arg(long, short)]
    verbose: bool,
}

/// Makes one call, or lists the methods that can be called.
///
/// # Errors
/// Nothing answers at the address, there is no such method, or the request does not match its contract.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(call(&args));
    // The thread that reads standard input may wait for a line that never comes.
    runtime.shutdown_background();
    code
}

async fn call(args: &Args) -> anyhow::Result<ExitCode> {
    let run = std::env::current_dir()
        .ok()
        .and_then(|dir| Run::nearest(&dir, |error| note(format_args!("weft: {error}"))))
        .filter(|run| run.up.is_alive());
    let address = args.address.clone().or_else(|| run.as_ref().map(|run| run.outbound_url.clone()));
    let address = address.unwrap_or_else(|| format!("http://127.0.0.1:{}", port::OUTBOUND));
    let (dashboard, otlp) = match (&args.dashboard, run) {
        (None, Some(run)) => (run.dashboard_url, run.otlp),
        (dashboard, _) => {
            let dashboard = dashboard.clone().unwrap_or_else(|| format!("http://127.0.0.1:{}", port::DASHBOARD));
            (dashboard.clone(), vec![dashboard])
        }
    };

    let channel = connect(&address).await?;
    let mut reflection = Reflection::new(channel.clone(), MESH);
    let Some((contract, method)) = args.method.as_deref().and_then(split_method) else {
        list::print(&mut reflection, args.method.as_deref()).await.map_err(explained)?;
        return Ok(ExitCode::SUCCESS);
    };
    let method = find_method(&mut reflection, contract, method).await.map_err(explained)?;
    let messages = Messages::new(&reflection.descriptor_set())?;
    let mut headers = metadata::parse(&args.headers, args.service.as_deref())?;
    let trace = CallTrace::begin(&mut headers, Server::new(args.service.as_deref(), &address))?;
    let printer = Printer { is_compact: args.compact, is_verbose: args.verbose };
    let outcome = tokio::select! {
        outcome = exchange(args, channel, &method, &messages, headers, &printer) => outcome.map(Some),
        // Dropping the call resets it.
        Ok(()) = tokio::signal::ctrl_c() => Ok(None),
    };
    let code = match &outcome {
        Ok(Some(Ok(()))) => Code::Ok,
        Ok(Some(Err(status))) => status.code(),
        Ok(None) => Code::Cancelled,
        Err(_) => Code::Unavailable,
    };
    trace.end(method.path.path().trim_start_matches('/'), code, &otlp).await;
    let code = match outcome? {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(status)) => {
            let known = output::details(&status, &mut reflection).await;
            printer.status(&status, known.as_ref().unwrap_or(&messages));
            ExitCode::from(EXIT_STATUS_BASE + status.code() as i32 as u8)
        }
        None => ExitCode::from(EXIT_INTERRUPTED),
    };
    note(format_args!("trace: {}/traces/{}", dashboard.trim_end_matches('/'), trace.id()));
    Ok(code)
}

/// One call of any kind. The outer error is ours, the inner one is the status that the call ended with.
async fn exchange(
    args: &Args,
    channel: Channel,
    method: &reflection::Method,
    messages: &Messages,
    headers: MetadataMap,
    printer: &Printer,
) -> anyhow::Result<Result<(), Status>> {
    let (failed, failure) = oneshot::channel();
    let source = input::Source::new(args.json.as_deref().or(args.data.as_deref()), args.json.is_some());
    let requests: futures_util::stream::BoxStream<'static, Bytes> = if method.client_streaming {
        input::stream(source, messages.clone(), method.input.clone(), failed)
    } else {
        // An invalid request is reported before anything is sent.
        let message = input::single(source, messages, &method.input).await?;
        futures_util::stream::once(async move { message }).boxed()
    };
    let mut request = Request::new(requests);
    *request.metadata_mut() = headers;
    if let Some(limit) = args.timeout {
        request.set_timeout(limit);
    }
    printer.request(method, request.metadata());
    let limit = args.timeout.map_or(Duration::MAX, |limit| limit + DEADLINE_GRACE);
    let call = timeout(limit, receive(channel, request, method, messages, printer));
    tokio::select! {
        outcome = call => match outcome {
            Ok(outcome) => outcome,
            Err(_) => bail!("no answer, although the deadline of {:?} has passed", args.timeout.unwrap_or_default()),
        },
        // Dropping the call resets it, so that the service does not take a partial request for a complete one.
        Ok(error) = failure => Err(error),
    }
}

async fn receive(
    channel: Channel,
    request: Request<futures_util::stream::BoxStream<'static, Bytes>>,
    method: &reflection::Method,
    messages: &Messages,
    printer: &Printer,
) -> anyhow::Result<Result<(), Status>> {
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES);
    client.ready().await.context("the connection broke")?;
    let response = match client.streaming(request, method.path.clone(), RawCodec).await {
        Ok(response) => response,
        Err(status) => return own_status(status).map(Err),
    };
    printer.headers("answered with the headers", response.metadata());
    output::tell_fallback(response.metadata());
    let mut answers: Streaming<Bytes> = response.into_inner();
    loop {
        match answers.message().await {
            Ok(Some(bytes)) => {
                let json = messages.to_json(&method.output, &bytes, !printer.is_compact);
                let json = json.with_context(|| format!("an answer is not a {}", method.output))?;
                if writeln!(std::io::stdout(), "{json}").is_err() {
                    // Nobody reads the answers any more: the call is cancelled.
                    return Ok(Ok(()));
                }
            }
            Ok(None) => break,
            Err(status) => return own_status(status).map(Err),
        }
    }
    if let Ok(Some(trailers)) = answers.trailers().await {
        printer.headers("ended with the trailers", &trailers);
    }
    Ok(Ok(()))
}

async fn connect(address: &str) -> anyhow::Result<Channel> {
    let with_scheme = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let endpoint = Endpoint::from_shared(with_scheme)
        .with_context(|| format!("{address:?} is not an address; allowed: a URL such as http://127.0.0.1:15001"))?;
    endpoint
        .connect_timeout(CONNECT_LIMIT)
        .connect()
        .await
        .map_err(|_| anyhow::anyhow!("nothing answers at {address}; is `weft up` running, and is --address right?"))
}

/// Says what to do about a server that is no sidecar.
fn explained(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        Some(ReflectionError::Missing(_)) => {
            anyhow::anyhow!("the server there has no server reflection; --address must be that of a sidecar")
        }
        _ => error,
    }
}

async fn find_method(reflection: &mut Reflection, contract: &str, method: &str) -> anyhow::Result<reflection::Method> {
    if !reflection.fetch_symbol(contract).await? {
        let contracts = reflection.services().await?;
        let near = hint(closest(contract, contracts.iter().map(String::as_str)));
        bail!("the mesh has no contract `{contract}`{near}; `weft call` lists the contracts");
    }
    let methods = reflection.methods(contract);
    if methods.is_empty() {
        let contracts = reflection.services().await?;
        let near = hint(closest(contract, contracts.iter().map(String::as_str)));
        bail!("`{contract}` is not a contract with methods{near}; `weft call` lists the contracts");
    }
    match methods.iter().find(|candidate| candidate.name == method) {
        Some(found) => Ok(found.clone()),
        None => {
            let near = hint(closest(method, methods.iter().map(|m| m.name.as_str())));
            let names = methods.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", ");
            bail!("{contract} has no method `{method}`{near}; it has {names}")
        }
    }
}

/// Tells a status that was sent from one that the client library made of a broken connection or a deadline that passed.
fn own_status(status: Status) -> anyhow::Result<Status> {
    match std::error::Error::source(&status) {
        None => Ok(status),
        Some(source) if source.is::<TimeoutExpired>() => {
            Ok(Status::deadline_exceeded("the deadline passed before there was an answer"))
        }
        Some(_) => bail!("the connection to the sidecar broke before the call had ended: {}", status.message()),
    }
}

fn hint(near: Option<&str>) -> String {
    near.map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"))
}

/// The contract and the method of `a.b.C/D` or `/a.b.C/D`; `None` if no method is named.
fn split_method(text: &str) -> Option<(&str, &str)> {
    text.trim_start_matches('/').split_once('/').filter(|(_, method)| !method.is_empty())
}

/// Reads a time such as `300ms`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let unit = match &text[split..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err("allowed: a number with ms, s, m or h, such as 300ms or 2s".to_owned()),
    };
    let number: f64 =
        text[..split].parse().map_err(|_| "allowed: a number with ms, s, m or h, such as 300ms or 2s".to_owned())?;
    match Duration::try_from_secs_f64(number * unit) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("allowed: more than zero, and not out of range".to_owned()),
    }
}

/// The name of a status as gRPC writes it.
fn status_name(code: Code) -> &'static str {
    GRPC_CODES[code as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(parse_duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for text in ["", "2", "s", "-1s", "0s", "1.2.3s", "1e9s", "99999999999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_method_is_split_from_its_contract() {
        assert_eq!(split_method("a.b.C/D"), Some(("a.b.C", "D")));
        assert_eq!(split_method("/a.b.C/D"), Some(("a.b.C", "D")));
        assert_eq!(split_method("a.b.C"), None);
        assert_eq!(split_method("a.b.C/"), None);
    }
}
