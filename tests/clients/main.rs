//! The shop as unchanged clients call it: each of gRPC's implementations runs the same cases through the sidecar
//! `keyboard` and the service's own. `tests/clients/install` builds the clients in other languages.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tonic::{Code, Request};
use tonic_prost::ProstCodec;
use weft_tests::{Bed, Text, eventually, outside, result, root, skip};

mod rust;

const LIMIT: Duration = Duration::from_secs(60);

/// The cases that each client prints `ok` for: calls of every kind, metadata in both directions, and how calls end.
const CASES: [&str; 11] = [
    "unary",
    "error-details",
    "server-stream",
    "client-stream",
    "bidi-stream",
    "metadata",
    "deadline",
    "cancel",
    "unknown-service",
    "gzip",
    "many-calls",
];

/// The services that the cases call, and `auth`, which `users` calls.
async fn shop() -> Bed {
    // The shop's contracts, with longer timeouts: on a slow machine two seconds pass quickly.
    let protos = tempfile::tempdir().expect("a folder");
    let mut services = String::new();
    for (name, args) in [("users", " --data users-data"), ("auth", ""), ("notifications", ""), ("products", "")] {
        let file = format!("shop/{name}/v1/{name}.proto");
        let contract = fs::read_to_string(root().join("proto").join(&file)).expect("a contract");
        let patient = ["timeout: { seconds: 2 }", "timeout: { seconds: 5 }"]
            .iter()
            .fold(contract.clone(), |text, timeout| text.replace(timeout, "timeout: { seconds: 60 }"));
        assert_ne!(patient, contract, "{file} has a timeout");
        let proto = protos.path().join(file);
        fs::create_dir_all(proto.parent().expect("it has one")).expect("the folder can be written");
        fs::write(&proto, patient).expect("the folder can be written");
        services += &format!(
            "  {name}:\n    run: ${{BIN}}/shop-{name}{args}\n    protos: [{}]\n    proto_path: [{}, {}]\n",
            proto.display(),
            protos.path().display(),
            root().join("proto").display()
        );
    }
    let bed = Bed::start(&services).await;
    // Until the control plane has settled, an unknown service is not yet UNIMPLEMENTED.
    let is_settled = async || {
        let mut client = tonic::client::Grpc::new(bed.channel());
        client.ready().await.expect("the sidecar is there");
        let path = http::uri::PathAndQuery::from_static("/shop.nothing.v1.Nothing/Do");
        let ended = client.unary(Request::new(Text::default()), path, ProstCodec::<Text, Text>::default()).await;
        ended.is_err_and(|status| status.code() == Code::Unimplemented)
    };
    eventually("the control plane has settled", LIMIT, is_settled).await;
    bed
}

/// A file that `tests/clients/install` makes, if it is there.
fn installed(path: &str) -> Option<PathBuf> {
    Some(root().join("target/clients").join(path)).filter(|path| path.exists())
}

/// Runs a client against a shop of its own, and looks for every case in what it prints.
async fn run(name: &str, mut client: Command) {
    let bed = shop().await;
    client.arg(format!("127.0.0.1:{}", bed.outbound()));
    let output = tokio::task::spawn_blocking(move || client.output()).await.expect("no panic");
    let output = output.expect("the client starts");
    let printed = String::from_utf8_lossy(&output.stdout);
    let wanted: Vec<_> = CASES.iter().map(|case| format!("ok {case}")).collect();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(printed.lines().collect::<Vec<_>>(), wanted, "{}\n{told}", output.status);
    assert!(output.status.success(), "{}\n{told}", output.status);
    result(&format!("{name}: {} cases pass", CASES.len()));
}

/// An interpreter that runs a file.
fn interpreted(interpreter: &Path, file: &Path) -> Command {
    let mut command = Command::new(interpreter);
    command.arg(file);
    command
}

#[tokio::test]
async fn grpc_go_calls_the_shop_as_if_there_were_no_mesh() {
    let Some(client) = installed("go/client") else { return skip("the Go client is not installed") };
    run("grpc-go", Command::new(client)).await;
}

#[tokio::test]
async fn grpcio_of_python_calls_the_shop_as_if_there_were_no_mesh() {
    let (Some(python), Some(stubs)) = (installed("python/bin/python"), installed("python/stubs")) else {
        return skip("the Python client is not installed");
    };
    let mut client = interpreted(&python, &root().join("tests/clients/python/client.py"));
    client.env("PYTHONPATH", stubs);
    run("grpcio", client).await;
}

#[tokio::test]
async fn grpc_js_of_node_calls_the_shop_as_if_there_were_no_mesh() {
    let (Some(node), Some(client)) = (outside("node"), installed("node/client.js")) else {
        return skip("the Node client is not installed");
    };
    let mut client = interpreted(&node, &client);
    client.env("PROTO_PATH", root().join("proto"));
    run("grpc-js", client).await;
}

#[tokio::test]
async fn grpc_java_calls_the_shop_as_if_there_were_no_mesh() {
    let (Some(java), Some(client)) = (outside("java"), installed("java/client.jar")) else {
        return skip("the Java client is not installed");
    };
    let jars = client.with_file_name("jars").join("*").display().to_string();
    let mut command = Command::new(java);
    command.args(["-cp", &format!("{}:{jars}", client.display()), "Client"]);
    run("grpc-java", command).await;
}

#[tokio::test]
async fn tonic_calls_the_shop_as_if_there_were_no_mesh() {
    let bed = shop().await;
    let failed = rust::cases(bed.channel()).await;
    assert!(failed.is_empty(), "{failed:#?}");
    result(&format!("tonic: {} cases pass", CASES.len()));
}
