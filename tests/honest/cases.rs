//! The table of cases: which load on which server.

use crate::{
    server::{Protocol, Server},
    tool::{Load, Tool},
};

/// Loads on a server, all at once.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) server: &'static Server,
    pub(crate) loads: &'static [Load],
}

impl Case {
    /// The programs that it needs.
    pub(crate) fn needs(&self) -> impl Iterator<Item = &'static str> {
        self.server.needs.iter().chain(self.loads.iter().flat_map(|load| load.needs)).copied()
    }
}

/// Cases that are known to fail, each with its reason.
pub(crate) const KNOWN: &[(&str, &str)] = &[];

static GO: Server = Server {
    name: "go",
    run: "${HONEST}/bin/honest-go server port=${PORT}",
    protocol: Protocol::Grpc,
    needs: &["bin/honest-go"],
};
static GO_MAX_STREAMS: Server =
    Server { name: "go-max-streams", run: "${HONEST}/bin/honest-go server port=${PORT} max_streams=10", ..GO_LIKE };
static GO_MAX_AGE: Server =
    Server { name: "go-max-age", run: "${HONEST}/bin/honest-go server port=${PORT} max_age_ms=1000", ..GO_LIKE };
const GO_LIKE: Server = Server { name: "", run: "", protocol: Protocol::Grpc, needs: &["bin/honest-go"] };
static NGINX: Server =
    Server { name: "nginx", run: "${SERVERS}/nginx ${PORT}", protocol: Protocol::Http1, needs: &["nginx"] };
static NGINX_H2: Server =
    Server { name: "nginx-h2", run: "${SERVERS}/nginx ${PORT} http2", protocol: Protocol::Http2, needs: &["nginx"] };
static PYTHON_HTTP: Server = Server {
    name: "python-http",
    run: "python3 -m http.server --bind 127.0.0.1 ${PORT}",
    protocol: Protocol::Http1,
    needs: &["python3"],
};

static REDIS: Server =
    Server { name: "redis", run: "${SERVERS}/redis ${PORT}", protocol: Protocol::Tcp, needs: &["redis-server"] };

/// The suite's own client in Go.
macro_rules! go {
    ($words:literal) => {
        Load {
            tool: Tool::Own,
            command: concat!("${HONEST}/bin/honest-go client target=127.0.0.1:${PORT} seconds=${SECONDS} ", $words),
            needs: &["bin/honest-go"],
            asks_for: &[],
        }
    };
}

macro_rules! wrk {
    ($words:literal, $path:literal) => {
        Load {
            tool: Tool::Wrk,
            command: concat!(
                "wrk --latency -t2 -d${SECONDS}s -H${HEADER} ",
                $words,
                " http://127.0.0.1:${PORT}",
                $path
            ),
            needs: &["wrk"],
            asks_for: &[],
        }
    };
}

macro_rules! ab {
    ($words:literal, $path:literal) => {
        Load {
            tool: Tool::Ab,
            command: concat!(
                "ab -q -r -t ${SECONDS} -n 1000000 -H${HEADER} ",
                $words,
                " http://127.0.0.1:${PORT}",
                $path
            ),
            needs: &["ab"],
            asks_for: &[],
        }
    };
}

macro_rules! h2load {
    ($words:literal, $path:literal) => {
        Load {
            tool: Tool::H2load,
            command: concat!("h2load -t1 -H${HEADER} ", $words, " http://127.0.0.1:${PORT}", $path),
            needs: &["h2load"],
            asks_for: &[],
        }
    };
}

macro_rules! redis {
    ($words:literal) => {
        Load {
            tool: Tool::Redis,
            command: concat!("redis-benchmark -p ${PORT} ", $words),
            needs: &["redis-benchmark"],
            asks_for: &[],
        }
    };
}

/// In the order in which they run: a server is kept from one case to the next.
pub(crate) static CASES: &[Case] = &[
    Case { name: "go: unary, 1×1", server: &GO, loads: &[go!("connections=1 each=1")] },
    Case { name: "go: unary, 1×2", server: &GO, loads: &[go!("connections=1 each=2")] },
    Case { name: "go: unary, 1×16", server: &GO, loads: &[go!("connections=1 each=16")] },
    Case { name: "go: unary, 8×1", server: &GO, loads: &[go!("connections=8 each=1")] },
    Case { name: "go: unary, 8×32", server: &GO, loads: &[go!("connections=8 each=32")] },
    Case { name: "go: unary, 100×1", server: &GO, loads: &[go!("connections=100 each=1")] },
    Case { name: "go: 1 MB, 4×1", server: &GO, loads: &[go!("connections=4 each=1 bytes=1000000")] },
    Case {
        name: "go: server streams, 4×4",
        server: &GO,
        loads: &[go!("kind=server connections=4 each=4 messages=100")],
    },
    Case {
        name: "go: client streams, 4×4",
        server: &GO,
        loads: &[go!("kind=client connections=4 each=4 messages=100")],
    },
    Case { name: "go: bidi streams, 4×4", server: &GO, loads: &[go!("kind=bidi connections=4 each=4 messages=20")] },
    Case {
        name: "go: bidi streams of 1 MB, 2×2",
        server: &GO,
        loads: &[go!("kind=bidi connections=2 each=2 messages=4 bytes=1000000")],
    },
    Case { name: "go: cancels, 4×8", server: &GO, loads: &[go!("connections=4 each=8 cancel_every=3")] },
    Case {
        name: "go: cancelled streams, 4×8",
        server: &GO,
        loads: &[go!("kind=bidi connections=4 each=8 messages=20 cancel_every=3")],
    },
    Case {
        name: "go: another's deadlines of 3 ms",
        server: &GO,
        loads: &[go!("connections=1 each=8 do=wait:10 deadline_ms=3 expect=4"), go!("connections=1 each=4")],
    },
    Case {
        name: "go: another's UNKNOWN",
        server: &GO,
        loads: &[go!("connections=1 each=1 do=fail:2 expect=2"), go!("connections=1 each=4")],
    },
    Case {
        name: "go: another's RESOURCE_EXHAUSTED",
        server: &GO,
        loads: &[go!("connections=1 each=1 do=fail:8 expect=8"), go!("connections=1 each=4")],
    },
    Case {
        name: "go: one call in 10 takes 500 ms",
        server: &GO,
        loads: &[go!("connections=4 each=16 do=wait:500 do_every=10")],
    },
    Case { name: "go with 10 streams: 4×50", server: &GO_MAX_STREAMS, loads: &[go!("connections=4 each=50")] },
    Case {
        name: "go with 10 streams: bidi, 4×50",
        server: &GO_MAX_STREAMS,
        loads: &[go!("kind=bidi connections=4 each=50")],
    },
    Case { name: "go with connections of 1 s: 4×4", server: &GO_MAX_AGE, loads: &[go!("connections=4 each=4")] },
    Case {
        name: "go with connections of 1 s: bidi, 4×4",
        server: &GO_MAX_AGE,
        loads: &[go!("kind=bidi connections=4 each=4 messages=50")],
    },
    Case { name: "nginx: wrk, 50", server: &NGINX, loads: &[wrk!("-c50", "/")] },
    Case { name: "nginx: wrk, 300", server: &NGINX, loads: &[wrk!("-c300", "/")] },
    Case { name: "nginx: wrk, 500", server: &NGINX, loads: &[wrk!("-c500", "/")] },
    Case { name: "nginx: wrk, 1 MB", server: &NGINX, loads: &[wrk!("-c8", "/1m")] },
    Case { name: "nginx: ab -k, 100", server: &NGINX, loads: &[ab!("-k -c100", "/")] },
    Case { name: "nginx: ab, 20, a connection for each", server: &NGINX, loads: &[ab!("-c20", "/")] },
    Case { name: "nginx: h2load --h1, 1000", server: &NGINX, loads: &[h2load!("--h1 -c1000 -n40000", "/")] },
    Case {
        name: "nginx, another's 429",
        server: &NGINX,
        loads: &[wrk!("-c4", "/429").asking_for(&["status"]), wrk!("-c4", "/")],
    },
    Case {
        name: "nginx by HTTP/2: h2load -c4 -m1500",
        server: &NGINX_H2,
        loads: &[h2load!("-c4 -m1500 -n60000", "/")],
    },
    Case {
        name: "nginx by HTTP/2: h2load -c100 -m10",
        server: &NGINX_H2,
        loads: &[h2load!("-c100 -m10 -n40000", "/")],
    },
    Case { name: "http.server: wrk, 16", server: &PYTHON_HTTP, loads: &[wrk!("-c16", "/")] },
    Case { name: "http.server: wrk, 64", server: &PYTHON_HTTP, loads: &[wrk!("-c64", "/")] },
    Case { name: "http.server: ab, 16", server: &PYTHON_HTTP, loads: &[ab!("-c16", "/")] },
    Case { name: "redis: redis-benchmark, 50", server: &REDIS, loads: &[redis!("-c 50 -n 20000 -t set,get")] },
    Case {
        name: "redis: redis-benchmark, 500, pipelined",
        server: &REDIS,
        loads: &[redis!("-c 500 -P 16 -n 100000 -t get")],
    },
];
