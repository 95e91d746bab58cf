//! gRPC: each language's server under grpc-go's client, each language's client on grpc-go's server, and servers with
//! limits of their own. `8×1` is 8 connections with one call at a time on each.

use super::Case;
use crate::{
    server::{Protocol, Server},
    tool::{Load, Tool},
};

/// A language's programs.
struct Language {
    name: &'static str,
    server: &'static str,
    client: &'static str,
    needs: &'static [&'static str],
}

const GO: Language = Language {
    name: "go",
    server: "${HONEST}/bin/honest-go server",
    client: "${HONEST}/bin/honest-go client",
    needs: &["bin/honest-go"],
};
const JAVA: Language = Language {
    name: "java",
    server: "java -cp ${HONEST}/java/honest.jar:${HONEST}/java/jars/* Honest server",
    client: "java -cp ${HONEST}/java/honest.jar:${HONEST}/java/jars/* Honest client",
    needs: &["java", "java/honest.jar"],
};
const PYTHON: Language = Language {
    name: "python",
    server: "${HONEST}/python/bin/python ${SOURCES}/python/grpc_load.py server",
    client: "${HONEST}/python/bin/python ${SOURCES}/python/grpc_load.py client",
    needs: &["python/bin/python"],
};
const AIO: Language = Language {
    name: "python-aio",
    server: "${HONEST}/python/bin/python ${SOURCES}/python/grpc_load.py aio-server",
    client: "${HONEST}/python/bin/python ${SOURCES}/python/grpc_load.py aio-client",
    needs: &["python/bin/python"],
};
const NODE: Language = Language {
    name: "node",
    server: "node ${HONEST}/node/grpc.js server",
    client: "node ${HONEST}/node/grpc.js client",
    needs: &["node", "node/grpc.js"],
};
const TONIC: Language = Language { name: "tonic", server: "${TONIC} server", client: "${TONIC} client", needs: &[] };

impl Language {
    /// Its server, with these options.
    fn server(&self, words: &str) -> Server {
        let name = format!("{} {words}", self.name).trim().replace([' ', '_', '='], "-");
        Server::new(&name, &format!("{} port=${{PORT}} {words}", self.server), Protocol::Grpc, self.needs)
    }

    /// Its client, with these options.
    fn client(&self, words: &str) -> Load {
        let command = format!("{} target=127.0.0.1:${{PORT}} seconds=${{SECONDS}} {words}", self.client);
        Load::new(Tool::Own, command, self.needs)
    }
}

/// The loads for each server and each client.
const LOADS: [(&str, &str); 9] = [
    ("1×1", "connections=1 each=1"),
    ("1×16", "connections=1 each=16"),
    ("8×1", "connections=8 each=1"),
    ("1 MB, 4×1", "connections=4 each=1 bytes=1000000"),
    ("server streams, 4×4", "kind=server connections=4 each=4 messages=50"),
    ("client streams, 4×4", "kind=client connections=4 each=4 messages=50"),
    ("bidi streams, 4×4", "kind=bidi connections=4 each=4 messages=20"),
    ("cancels, 4×4", "connections=4 each=4 cancel_every=3"),
    ("cancelled streams, 4×4", "kind=bidi connections=4 each=4 messages=20 cancel_every=3"),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let go = GO.server("");
    for (shape, words) in LOADS {
        cases.push(Case::new(format!("go: {shape}"), &go, [GO.client(words)]));
    }
    cases.extend(more_of_go(&go));
    for client in [JAVA, PYTHON, AIO, NODE, TONIC] {
        for (shape, words) in LOADS {
            let is_extra = is_of_asyncio(&client, words);
            // Java's client has no `cancel_every`.
            if client.name != "java" || !words.contains("cancel") {
                let case = Case::new(format!("{} client: {shape}", client.name), &go, [client.client(words)]);
                cases.push(case.extra(is_extra));
            }
        }
    }
    cases.extend(limits());
    for server in [JAVA, PYTHON, AIO, NODE, TONIC] {
        let at = server.server("");
        for (shape, words) in LOADS {
            let case = Case::new(format!("{} server: {shape}", server.name), &at, [GO.client(words)]);
            cases.push(case.extra(is_of_asyncio(&server, words)));
        }
        let unknown = [GO.client("connections=1 each=1 do=fail:2 expect=2"), GO.client("connections=1 each=4")];
        cases.push(Case::new(format!("{} server: another's UNKNOWN", server.name), &at, unknown));
    }
    let raising = [GO.client("do=raise:1 expect=2"), GO.client("each=4")];
    cases.push(Case::new("python server: another's exceptions", &PYTHON.server(""), raising));
    cases
}

/// Whether these are grpcio's streams with asyncio, which use the same C core as those without.
fn is_of_asyncio(language: &Language, words: &str) -> bool {
    language.name == AIO.name && words.contains("kind=")
}

/// Cases with grpc-go on both sides.
fn more_of_go(go: &Server) -> Vec<Case> {
    // One client's calls end in an unusual way, another's are ordinary.
    let beside = |name: &str, words: &str| Case::new(name, go, [GO.client(words), GO.client("connections=1 each=4")]);
    let ghz = "${HONEST}/bin/ghz --insecure --proto ${SOURCES}/../proto/honest/v1/echo.proto --call honest.v1.Echo.Unary -O json \
               -d {\"body\":\"aGVsbG8=\"} -c 50 --connections 5 -n 20000 127.0.0.1:${PORT}";
    vec![
        Case::new("go: 1×2", go, [GO.client("connections=1 each=2")]),
        Case::new("go: 8×32", go, [GO.client("connections=8 each=32")]),
        Case::new("go: 100×1", go, [GO.client("connections=100 each=1")]),
        Case::new("go: 1000×1", go, [GO.client("connections=1000 each=1")]),
        Case::new(
            "go: bidi streams of 1 MB, 2×2",
            go,
            [GO.client("kind=bidi connections=2 each=2 messages=4 bytes=1000000")],
        ),
        Case::new("go: one call in 10 takes 500 ms", go, [GO.client("connections=4 each=16 do=wait:500 do_every=10")]),
        beside("go: another's deadlines of 3 ms", "connections=1 each=8 do=wait:10 deadline_ms=3 expect=4"),
        beside("go: another's UNKNOWN", "do=fail:2 expect=2"),
        beside("go: another's RESOURCE_EXHAUSTED", "do=fail:8 expect=8"),
        beside("go: another's ABORTED", "do=fail:10 expect=10"),
        beside("go: another's cancels", "each=8 cancel_every=1 do=wait:50"),
        Case::new("go: ghz, 50 on 5", go, [Load::new(Tool::Ghz, ghz.to_owned(), &["bin/ghz"])]),
    ]
}

/// Servers that limit concurrent calls, end connections, or count PINGs.
fn limits() -> Vec<Case> {
    let mut cases = Vec::new();
    for server in [GO, JAVA, NODE, TONIC] {
        let few = server.server("max_streams=10");
        let name = format!("{} with 10 streams", server.name);
        cases.push(Case::new(format!("{name}: 4×50"), &few, [GO.client("connections=4 each=50")]));
        let bidi = Case::new(format!("{name}: bidi, 4×50"), &few, [GO.client("kind=bidi connections=4 each=50")]);
        cases.push(bidi.extra(server.name != GO.name));
    }
    for server in [GO, JAVA, PYTHON, NODE, TONIC] {
        let young = server.server("max_age_ms=1000");
        let name = format!("{} with connections of 1 s", server.name);
        cases.push(Case::new(format!("{name}: 4×4"), &young, [GO.client("connections=4 each=4")]));
        let bidi = [GO.client("kind=bidi connections=4 each=4 messages=50")];
        cases.push(Case::new(format!("{name}: bidi, 4×4"), &young, bidi).extra(server.name != GO.name));
    }
    let strict = GO.server("keepalive_min_ms=90");
    let pinging = NODE.client("connections=4 each=1 keepalive_ms=100 pause_ms=300");
    cases.push(Case::new("go that counts pings: node's keep-alive of 100 ms", &strict, [pinging]));
    let slow = [GO.client("connections=2 each=2 do=wait:1500"), GO.client("connections=1 each=1")];
    cases.push(Case::new("go that counts pings: calls of 1.5 s", &GO.server("keepalive_min_ms=60000"), slow));
    cases
}
