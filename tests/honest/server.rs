//! The programs that are called, as `mesh.yaml` describes them.

use weft_tests::{binary, root};

use crate::installed;

/// A program that listens on `${PORT}`.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// Its name in the mesh.
    pub(crate) name: String,
    /// Its command, to be filled in by [`paths`].
    pub(crate) run: String,
    pub(crate) protocol: Protocol,
    /// Files below `target/honest`, and programs on the path.
    pub(crate) needs: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// `honest.v1.Echo`
    Grpc,
    /// HTTP/2 that is not gRPC.
    Http2,
    Http1,
    Tcp,
}

/// Fills in a command: `${HONEST}` is the folder of the suite's programs, `${SOURCES}` the folder of their sources, and
/// `${TONIC}` the suite's own program in Rust.
pub(crate) fn paths(command: &str) -> String {
    let mut command = command.replace("${HONEST}", &installed().display().to_string());
    command = command.replace("${SOURCES}", &root().join("tests/honest").display().to_string());
    if command.contains("${TONIC}") {
        command = command.replace("${TONIC}", &binary("weft-honest").display().to_string());
    }
    command
}

impl Server {
    pub(crate) fn new(name: &str, run: &str, protocol: Protocol, needs: &[&'static str]) -> Self {
        Self { name: name.to_owned(), run: run.to_owned(), protocol, needs: needs.to_vec() }
    }

    /// Its entry in `mesh.yaml`.
    pub(crate) fn yaml(&self) -> String {
        let proto = root().join("tests/proto/honest/v1/echo.proto").display().to_string();
        let protocol = match self.protocol {
            Protocol::Grpc => format!("protos: [{proto}]\n    proto_path: ${{PROTO_PATH}}\n    health: tcp"),
            Protocol::Http2 => "health: tcp".to_owned(),
            Protocol::Http1 => "protocol: http1".to_owned(),
            Protocol::Tcp => "protocol: tcp".to_owned(),
        };
        format!("  {}:\n    run: {}\n    {protocol}\n", self.name, paths(&self.run))
    }
}
