//! The programs that are called, as `mesh.yaml` has them.

use weft_tests::root;

use crate::installed;

/// A program of others that listens on `${PORT}`.
#[derive(Debug)]
pub(crate) struct Server {
    /// Its name in the mesh.
    pub(crate) name: &'static str,
    /// Its command: `${HONEST}` is where the suite's programs are, `${SERVERS}` the folder of scripts that start others'.
    pub(crate) run: &'static str,
    pub(crate) protocol: Protocol,
    /// Files below `target/honest`, and programs on the path.
    pub(crate) needs: &'static [&'static str],
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

impl Server {
    /// Its entry in `mesh.yaml`, and what ends the file.
    pub(crate) fn yaml(&self) -> String {
        let run = self.run.replace("${HONEST}", &installed().display().to_string());
        let run = run.replace("${SERVERS}", &root().join("tests/honest/servers").display().to_string());
        let proto = root().join("tests/proto/honest/v1/echo.proto").display().to_string();
        let protocol = match self.protocol {
            Protocol::Grpc => format!("protos: [{proto}]\n    proto_path: ${{PROTO_PATH}}"),
            Protocol::Http2 => "health: tcp".to_owned(),
            Protocol::Http1 => "protocol: http1".to_owned(),
            Protocol::Tcp => "protocol: tcp".to_owned(),
        };
        // As many traces as a mesh under load has, not as many as a developer wants.
        format!("  {}:\n    run: {run}\n    {protocol}\ntraces: {{ sample: 0.01 }}\n", self.name)
    }
}
