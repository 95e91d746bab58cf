//! HTTP/1.1 and HTTP/2 servers under wrk, ab and h2load, and clients of Node: Connect, gRPC-Web, WebSocket, socket.io.

use super::Case;
use crate::{
    server::{Protocol, Server},
    tool::{Load, Tool},
};

fn wrk(words: &str, path: &str) -> Load {
    // By default an answer that takes 2 s counts as a failure, which it is not on a loaded machine.
    let command = format!(
        "wrk --latency --timeout 60s -t2 -d${{SECONDS}}s -H${{HEADER}} {words} http://127.0.0.1:${{PORT}}{path}"
    );
    Load::new(Tool::Wrk, command, &["wrk"])
}

fn ab(words: &str) -> Load {
    // `-t` sets `-n`, so `-n` has to come after it.
    let command = format!("ab -q -r -t ${{SECONDS}} -n 1000000 -H${{HEADER}} {words} http://127.0.0.1:${{PORT}}/");
    Load::new(Tool::Ab, command, &["ab"])
}

fn h2load(words: &str) -> Load {
    Load::new(Tool::H2load, format!("h2load -t1 -H${{HEADER}} {words} http://127.0.0.1:${{PORT}}/"), &["h2load"])
}

/// A client in Node: its file and its options.
fn node(file: &str, words: &str) -> Load {
    let target = "target=127.0.0.1:${PORT} service=${SERVICE} seconds=${SECONDS}";
    Load::new(Tool::Own, format!("node ${{HONEST}}/node/{file} {target} {words}"), &["node", "node/grpc.js"])
}

/// Servers of HTTP/1.1 by name.
pub(crate) fn servers() -> Vec<Server> {
    let http1 = |name, run, needs| Server::new(name, run, Protocol::Http1, needs);
    vec![
        http1("nginx", "${SOURCES}/servers/nginx ${PORT}", &["nginx"]),
        http1("apache", "${SOURCES}/servers/apache ${PORT}", &["apache2"]),
        http1("caddy", "${SOURCES}/servers/caddy ${PORT}", &["caddy"]),
        http1("node-http", "node ${HONEST}/node/web.js http ${PORT}", &["node", "node/web.js"]),
        http1("express", "node ${HONEST}/node/web.js express ${PORT}", &["node", "node/web.js"]),
        http1("fastify", "node ${HONEST}/node/web.js fastify ${PORT}", &["node", "node/web.js"]),
        http1(
            "gunicorn",
            "${HONEST}/python/bin/gunicorn --chdir ${SOURCES}/python --bind 127.0.0.1:${PORT} --worker-class gthread \
             --threads 16 --log-level warning web:wsgi",
            &["python/bin/gunicorn"],
        ),
        http1(
            "uvicorn",
            "${HONEST}/python/bin/uvicorn --app-dir ${SOURCES}/python --port ${PORT} --no-access-log --log-level warning \
             web:asgi",
            &["python/bin/uvicorn"],
        ),
        http1("java-http", "java -cp ${HONEST}/java/honest.jar Honest http port=${PORT}", &["java", "java/honest.jar"]),
        http1("python-http", "python3 -m http.server --bind 127.0.0.1 ${PORT}", &["python3"]),
    ]
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for server in servers() {
        let name = server.name.clone();
        let mut case = |what: &str, loads: Vec<Load>| {
            // For a server, `ab -k` is much like wrk.
            let is_extra = what.starts_with("ab -k") && !["nginx", "node-http"].contains(&name.as_str());
            cases.push(Case::new(format!("{name}: {what}"), &server, loads).extra(is_extra));
        };
        if name == "python-http" {
            // Its accept queue has room for 5 connections, and it ends each after one answer.
            case("wrk, 16", vec![wrk("-c16", "/")]);
            case("wrk, 64", vec![wrk("-c64", "/")]);
            case("ab, 16", vec![ab("-c16")]);
            continue;
        }
        case("wrk, 50", vec![wrk("-c50", "/")]);
        case("wrk, 500", vec![wrk("-c500", "/")]);
        case("ab -k, 100", vec![ab("-k -c100")]);
        case("ab, 20, a connection for each", vec![ab("-c20")]);
        match name.as_str() {
            "nginx" => {
                case("wrk, 300", vec![wrk("-c300", "/")]);
                case("wrk, 1 MB", vec![wrk("-c8", "/1m")]);
                case("h2load --h1, 1000", vec![h2load("--h1 -c1000 -n40000")]);
                case("another's 429", vec![wrk("-c4", "/429").asking_for(&["status"]), wrk("-c4", "/")]);
                case("an early 403", vec![node("http_client.js", "path=/early calls=100")]);
            }
            "node-http" => {
                case("h2load --h1, 1000", vec![h2load("--h1 -c1000 -n20000")]);
                case("another's 429", vec![wrk("-c4", "/status/429").asking_for(&["status"]), wrk("-c4", "/")]);
                case("an early 403", vec![node("http_client.js", "path=/early calls=100")]);
            }
            "express" => case("an early 404", vec![node("http_client.js", "path=/missing status=404 calls=100")]),
            "fastify" => case("an early 415", vec![node("http_client.js", "path=/json status=415 calls=100")]),
            _ => {}
        }
    }
    let nginx = Server::new("nginx-h2", "${SOURCES}/servers/nginx ${PORT} http2", Protocol::Http2, &["nginx"]);
    cases.push(Case::new("nginx by HTTP/2: h2load -c4 -m1500", &nginx, [h2load("-c4 -m1500 -n60000")]));
    cases.push(Case::new("nginx by HTTP/2: h2load -c100 -m10", &nginx, [h2load("-c100 -m10 -n40000")]));
    cases.extend(web());
    cases
}

fn web() -> Vec<Case> {
    let mut cases = Vec::new();
    for (version, protocol) in [("1", Protocol::Http1), ("2", Protocol::Grpc)] {
        let run = format!("node ${{HONEST}}/node/connect.js server port=${{PORT}} http={version}");
        let server = Server::new(&format!("connect-{version}"), &run, protocol, &["node", "node/connect.js"]);
        for spoken in ["connect", "grpc", "web", "grpc-web"] {
            // gRPC needs HTTP/2. A browser's grpc-web library speaks only HTTP/1.1 here.
            if (spoken == "grpc" && version == "1") || (spoken == "grpc-web" && version == "2") {
                continue;
            }
            let words = format!("client protocol={spoken} http={version} format=binary");
            // The first word selects server or client.
            let call = |more: &str| node(&format!("connect.js {}", words.clone() + " " + more), "");
            let name =
                format!("connect-node's {spoken} by HTTP/{version}").replace("connect-node's grpc-web", "grpc-web");
            cases.push(Case::new(format!("{name}: 200 calls"), &server, [call("")]));
            cases.push(Case::new(format!("{name}: each second fails"), &server, [call("do=fail:8 expect=8")]));
            if spoken != "grpc-web" {
                cases.push(Case::new(format!("{name}: 200 streams"), &server, [call("kind=server")]));
            }
        }
    }
    let run = "node ${HONEST}/node/sockets.js server port=${PORT}";
    let sockets = Server::new("sockets", run, Protocol::Http1, &["node", "node/sockets.js"]);
    for (name, words) in [
        ("ws, 1", "kind=ws"),
        ("ws, 100", "kind=ws connections=100"),
        ("ws, 500", "kind=ws connections=500"),
        ("ws, messages of 100 KB", "kind=ws connections=4 bytes=100000"),
        ("socket.io, 20", "kind=socket.io connections=20"),
        ("socket.io by polling, 20", "kind=socket.io connections=20 transports=polling"),
    ] {
        cases.push(Case::new(name, &sockets, [node(&format!("sockets.js client {words}"), "")]));
    }
    cases
}
