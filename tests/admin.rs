//! The admin ports of running sidecars: what they show, and the commands that they take.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};
use tonic::Code;
use weft_contracts::weft::admin::v1::{
    DrainRequest, GetStateRequest, SetLogFilterRequest, admin_client::AdminClient, live_call::Direction,
    setting::Origin,
};
use weft_tests::{Bed, Load, Wire, binary, channel, eventually, framed, get, probe, probe_service, signal};

/// A guard that only a very slow machine reaches.
const LIMIT: Duration = Duration::from_secs(60);

async fn state(port: u16) -> Value {
    let (status, text) = get(port, "/state").await;
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{status} is not JSON ({e}): {text}"))
}

/// The calls of a sidecar that have this method or path.
async fn calls(port: u16, method: &str) -> Vec<Value> {
    let state = state(port).await;
    let calls = state["calls"]["oldest"].as_array().expect("a list").iter();
    calls.filter(|call| call["method"] == method).cloned().collect()
}

async fn the_call(port: u16, method: &str) -> Value {
    eventually("the call is shown", LIMIT, async || calls(port, method).await.len() == 1).await;
    calls(port, method).await.remove(0)
}

/// The seconds in `1.5s`.
fn seconds(duration: &Value) -> f64 {
    let text = duration.as_str().unwrap_or_else(|| panic!("{duration} is not a duration"));
    text.trim_end_matches('s').parse().expect("seconds")
}

fn number(value: &Value) -> u64 {
    value.as_str().expect("a 64-bit number").parse().expect("digits")
}

/// Sends a request. Returns the status and body of the answer.
async fn ask(port: u16, method: Method, path: &str, headers: &[(&str, &str)], body: &'static str) -> (u16, String) {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("something listens");
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("HTTP/1.1 begins");
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", format!("127.0.0.1:{port}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from_static(body.as_bytes()))).expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a whole body").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stream_is_shown_on_both_sides_for_as_long_as_it_runs() {
    let bed = &Bed::start(&probe_service(1)).await;
    let (out, inb) = (bed.ports("keyboard").admin, bed.ports("probe-1").admin);
    let mut client = Wire::connect(bed.outbound()).await;
    let (answer, mut says) = client.open("Chat", &[]).await;
    says.send_data(framed("hello"), false).expect("the stream is open");
    let mut echo = answer.await.expect("an answer").into_body();
    echo.data().await.expect("an echo").expect("a part of it");

    let (sent, received) = (the_call(out, "probe.v1.Probe/Chat").await, the_call(inb, "probe.v1.Probe/Chat").await);
    assert_eq!(
        (&sent["direction"], &received["direction"]),
        (&"DIRECTION_OUTBOUND".into(), &"DIRECTION_INBOUND".into())
    );
    for call in [&sent, &received] {
        assert_eq!((&call["service"], &call["peer"]), (&"probe.shop".into(), &"keyboard.shop".into()), "{call}");
        assert_eq!((&call["progress"], &call["deadlineLeft"]), (&"PROGRESS_ANSWERING".into(), &Value::Null), "{call}");
        let bytes = framed("hello").len() as u64;
        assert_eq!((number(&call["requestBytes"]), number(&call["responseBytes"])), (bytes, bytes), "{call}");
    }
    let watched = state(out).await["services"][0]["endpoints"][0].clone();
    assert_eq!((&sent["endpoint"], &sent["address"]), (&watched["id"], &watched["address"]));
    let older = async || seconds(&the_call(out, "probe.v1.Probe/Chat").await["age"]) > seconds(&sent["age"]);
    eventually("its age grows", LIMIT, older).await;

    says.send_data(Bytes::new(), true).expect("the stream is open");
    let gone = async || calls(out, "probe.v1.Probe/Chat").await.is_empty();
    eventually("it is gone when it has ended", LIMIT, gone).await;
    let gone = async || calls(inb, "probe.v1.Probe/Chat").await.is_empty();
    eventually("it is gone on the other side, too", LIMIT, gone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_call_shows_its_deadline_and_what_it_waits_for() {
    let bed = &Bed::start(&probe_service(1)).await;
    let out = bed.ports("keyboard").admin;
    let mut client = Wire::connect(bed.outbound()).await;
    let (_answer, mut body) = client.open("Say", &[("x-do", "sleep:60000"), ("grpc-timeout", "50S")]).await;
    body.send_data(framed("hello"), true).expect("the call is open");
    let sent = async || the_call(out, "probe.v1.Probe/Say").await["progress"] == "PROGRESS_AWAITING_ANSWER";
    eventually("the call is sent", LIMIT, sent).await;
    let call = the_call(out, "probe.v1.Probe/Say").await;
    let (age, left) = (seconds(&call["age"]), seconds(&call["deadlineLeft"]));
    assert!((49.0..50.5).contains(&(age + left)), "{call}");
    assert_eq!(call["tries"], 1);
    assert!(get(out, "/").await.1.contains("probe.v1.Probe/Say"), "the page shows it");
    client.cut();
    let gone = async || calls(out, "probe.v1.Probe/Say").await.is_empty();
    eventually("a cancelled call is gone", LIMIT, gone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_request_over_http1_is_shown_without_its_query() {
    let bed = &Bed::start(&probe_service(1)).await;
    let out = bed.ports("keyboard").admin;
    let mut client = TcpStream::connect(("127.0.0.1", bed.outbound())).await.expect("the sidecar is there");
    let head = "GET /slow?password=secret HTTP/1.1\r\nhost: x\r\nx-weft-service: probe\r\nx-do: sleep:60000\r\n\r\n";
    client.write_all(head.as_bytes()).await.expect("the sidecar reads");
    let call = the_call(out, "/slow").await;
    assert_eq!((&call["service"], &call["direction"]), (&"probe.shop".into(), &"DIRECTION_OUTBOUND".into()));
    assert!(!state(out).await.to_string().contains("secret"));
    drop(client);
    eventually("it is gone with its client", LIMIT, async || calls(out, "/slow").await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_page_the_json_and_grpc_show_the_same() {
    let bed = &Bed::start(&probe_service(1)).await;
    let port = bed.ports("probe-1").admin;
    let mut admin = AdminClient::new(channel(port));
    let by_grpc = admin.get_state(GetStateRequest {}).await.expect("gRPC is answered").into_inner();
    let (json, page) = (state(port).await, get(port, "/").await.1);
    assert_eq!((by_grpc.service.as_str(), &json["service"]), ("probe.shop", &"probe.shop".into()));
    let id = by_grpc.identity.expect("an identity").spiffe_id;
    assert!(json["identity"]["spiffeId"] == *id && page.contains(&id), "{id}");
    for limit in &by_grpc.limits {
        let name = &limit.name;
        assert!(
            page.contains(name) && json["limits"].as_array().expect("a list").iter().any(|l| l["name"] == *name),
            "{name}"
        );
    }
    for setting in &by_grpc.configuration {
        assert!(page.contains(&setting.name), "{setting:?}");
    }
    let app = by_grpc.configuration.iter().find(|setting| setting.name == "--app").expect("a flag");
    assert_eq!((app.value.clone(), app.origin()), (format!("127.0.0.1:{}", bed.ports("probe-1").app), Origin::Flag));
    assert!(number(&json["memory"]["resident"]["residentBytes"]) > 1 << 20, "{}", json["memory"]);
    assert_eq!((by_grpc.workers.len(), by_grpc.workers[0].answered), (1, true));
    assert!(by_grpc.calls.expect("calls").oldest.iter().all(|call| call.direction() == Direction::Inbound));
}

/// How much of a limit is in use, and the most that ever was.
async fn in_use(port: u16, limit: &str) -> (u64, u64) {
    let state = state(port).await;
    let row = state["limits"].as_array().expect("a list").iter().find(|row| row["name"] == limit).cloned();
    let used = &row.expect("the limit is shown")["use"];
    (number(&used["now"]), used["highest"].as_str().map_or(0, |highest| highest.parse().expect("digits")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn limits_show_how_much_of_them_is_in_use() {
    let bed = &Bed::start(&probe_service(1)).await;
    let out = bed.ports("keyboard").admin;
    eventually("nothing runs", LIMIT, async || in_use(out, "CALLS_IN_FLIGHT").await.0 == 0).await;
    let mut client = Wire::connect(bed.outbound()).await;
    let mut running = Vec::new();
    for _ in 0..7 {
        let (answer, mut body) = client.open("Say", &[("x-do", "sleep:60000")]).await;
        body.send_data(framed("hello"), true).expect("the call is open");
        running.push(answer);
    }
    eventually("seven calls run", LIMIT, async || in_use(out, "CALLS_IN_FLIGHT").await.0 == 7).await;
    assert_eq!(in_use(out, "STREAMS_PER_CONNECTION").await.0, 7);
    let bytes = 7 * framed("hello").len() as u64;
    eventually("their bodies are kept", LIMIT, async || in_use(out, "REPLAY_BYTES").await.0 == bytes).await;
    assert!(in_use(out, "CONNECTIONS_PER_SIDE").await.0 >= 1);
    assert_eq!(in_use(out, "SERVICES_WATCHED").await.0, 1);
    client.cut();
    eventually("no call runs", LIMIT, async || in_use(out, "CALLS_IN_FLIGHT").await.0 == 0).await;
    assert!(in_use(out, "CALLS_IN_FLIGHT").await.1 >= 7, "the most that ran is remembered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ended_calls_leave_nothing_in_the_buffers() {
    let bed = &Bed::start(&probe_service(1)).await;
    // Answers that end with their last bytes, as over HTTP/1.1. Those of gRPC end with trailers.
    for _ in 0..10 {
        let headers = [("x-weft-service", "probe"), ("connection", "close")];
        assert_eq!(ask(bed.outbound(), Method::GET, "/page", &headers, "").await, (200, "hello\n".to_owned()));
    }
    // Requests that are answered, cancelled or out of time before they are complete.
    let mut client = Wire::connect(bed.outbound()).await;
    let mut halves = Vec::new();
    for (method, what) in [("Say", "status:5"), ("Say", "sleep:60000"), ("Quick", "sleep:60000")] {
        let (answer, mut body) = client.open(method, &[("x-do", what)]).await;
        // The first may be answered already.
        let _ = body.send_data(framed("half of it"), false);
        halves.push((answer, body));
    }
    eventually("one still runs", LIMIT, async || in_use(bed.ports("keyboard").admin, "CALLS_IN_FLIGHT").await.0 == 1)
        .await;
    let (_, mut body) = halves.remove(1);
    body.send_reset(h2::Reason::CANCEL);
    // An answer that its caller does not read, and then cancels when much of it is buffered.
    let mut stalled = Wire::connect(bed.outbound()).await;
    let (_unread, mut says) = stalled.open("Chat", &[]).await;
    says.send_data(framed(&"x".repeat(500_000)), false).expect("the call is open");
    let held = async || in_use(bed.ports("keyboard").admin, "CONNECTION_BUFFER_BYTES").await.0;
    eventually("much of it is buffered", LIMIT, async || held().await > 100_000).await;
    stalled.cut();
    for sidecar in ["keyboard", "probe-1"] {
        let port = bed.ports(sidecar).admin;
        let held = async || in_use(port, "CONNECTION_BUFFER_BYTES").await.0;
        eventually("nothing is buffered", LIMIT, async || held().await == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_profile_names_wefts_functions_and_only_one_runs_at_a_time() {
    let bed = &Bed::start(&probe_service(1)).await;
    let out = bed.ports("keyboard").admin;
    let mut load = JoinSet::new();
    for _ in 0..4 {
        let channel = bed.channel();
        load.spawn(async move {
            loop {
                if let Err(status) = probe(&channel, "Say", &[]).await {
                    return status;
                }
            }
        });
    }
    let named = async || {
        let (status, stacks) = get(out, "/profile/cpu?seconds=1").await;
        assert_eq!(status, 200, "{stacks}");
        // A line is a thread, its stack, and how often this stack was seen.
        assert!(!stacks.contains("trace_unsynchronized"), "the sampler leaves itself out: {stacks}");
        stacks.lines().any(|line| line.starts_with("worker-0;") && line.contains("weft_wire::"))
    };
    // Each profile of a debug build takes seconds of CPU, for its symbols.
    eventually("a profile names Weft's own functions", 5 * LIMIT, named).await;
    // Either of the two may come first.
    let path = "/profile/cpu?seconds=5&format=svg";
    let (mut taken, mut refused) = tokio::join!(get(out, path), get(out, path));
    if taken.0 != 200 {
        std::mem::swap(&mut taken, &mut refused);
    }
    assert!(taken.0 == 200 && taken.1.starts_with("<svg") && taken.1.contains("weft_sidecar::"), "{}", taken.1);
    assert!(refused.0 == 409 && refused.1.contains("one at a time"), "{refused:?}");
    let (status, profile) = get(out, "/profile/cpu?seconds=1&format=pprof").await;
    assert!(status == 200 && profile.contains("nanoseconds"), "{status}");
    for (query, why) in [
        ("seconds=61", "at most 60s"),
        ("seconds=0", "more than nothing"),
        ("seconds=soon", "no time"),
        ("format=png", "allowed: collapsed, svg, pprof"),
        ("second=1", "`second` is not known"),
    ] {
        let (status, text) = get(out, &format!("/profile/cpu?{query}")).await;
        assert!(status == 400 && text.contains(why), "{query}: {status} {text}");
    }
    let failed = load.try_join_next();
    assert!(failed.is_none(), "a profile holds up no call: {failed:?}");
    load.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_age_of_a_snapshot_grows_while_the_control_plane_is_silent() {
    let bed = &Bed::start(&probe_service(1)).await;
    probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    let out = bed.ports("keyboard").admin;
    let control = bed.pid("control");
    signal("-STOP", control);
    let age = async || seconds(&state(out).await["services"][0]["age"]);
    let before = age().await;
    eventually("the silence is noticed", LIMIT, async || state(out).await["controlPlaneConnected"] == false).await;
    eventually("the age grows", LIMIT, async || age().await > before + 0.5).await;
    let after = age().await;
    assert!(get(out, "/").await.1.contains("what is known stays in use"));
    probe(&bed.channel(), "Say", &[]).await.expect("calls go on");
    signal("-CONT", control);
    let heard = async || {
        let state = state(out).await;
        state["controlPlaneConnected"] == true && seconds(&state["services"][0]["age"]) < after
    };
    eventually("the control plane is heard again", LIMIT, heard).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn requests_of_other_sites_are_refused() {
    let bed = &Bed::start(&probe_service(1)).await;
    let out = bed.ports("keyboard").admin;
    for (method, path) in
        [(Method::POST, "/drain"), (Method::POST, "/log?filter=off"), (Method::PUT, "/log?filter=off")]
    {
        for from in [("origin", "https://evil.example"), ("origin", "null"), ("sec-fetch-site", "cross-site")] {
            let (status, _) = ask(out, method.clone(), path, &[from], "").await;
            assert_eq!(status, 403, "{method} {path} from {from:?}");
        }
        let (status, _) =
            ask(out, Method::GET, "/profile/cpu?seconds=1", &[("sec-fetch-site", "cross-site")], "").await;
        assert_eq!(status, 403, "a profile costs time");
    }
    assert_eq!(ask(out, Method::GET, "/drain", &[], "").await.0, 405, "a GET changes nothing");
    let state = state(out).await;
    assert_eq!((&state["unreadyReason"], &state["log"]["filter"]), (&"".into(), &state["log"]["filterAtStart"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_wrong_log_filter_is_refused_and_its_wrong_part_named() {
    let bed = &Bed::start(&probe_service(1)).await;
    let out = bed.ports("keyboard").admin;
    for (query, why) in [
        ("filter=info,weft_sidecar=loud", "`weft_sidecar=loud` has the level `loud`"),
        ("filter=debgu", "`debgu`"),
        ("for=5m", "`filter` is missing"),
        ("filter=debug&for=5", ""),
        ("filter=debug&for=5d", "`5d`, which is no time"),
        ("filter=debug&for=25h", "at most 24 h"),
        ("filter=debug&until=5m", "`until` is not known"),
    ] {
        let (status, text) = ask(out, Method::POST, &format!("/log?{query}"), &[], "").await;
        match why {
            "" => assert_eq!(status, 200, "{query}: {text}"),
            why => assert!(status == 400 && text.contains(why), "{query}: {status} {text}"),
        }
    }
    let mut admin = AdminClient::new(channel(out));
    let request = SetLogFilterRequest { filter: "weft_sidecar=loud".into(), r#for: None };
    let refused = admin.set_log_filter(request).await.expect_err("the filter is wrong");
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("`loud`"), "{refused:?}");
    // An empty filter restores the one of the start.
    let log = admin.set_log_filter(SetLogFilterRequest::default()).await.expect("the filter is correct").into_inner();
    assert_eq!((log.filter, log.left), (log.filter_at_start, None));
}

/// The number of lines that a sidecar logs only at level `debug`.
fn details(bed: &Bed) -> usize {
    bed.log().matches("the service has changed").count()
}

/// Makes the control plane send a change, and waits until the keyboard's sidecar has it.
async fn change(bed: &Bed) {
    let out = bed.ports("keyboard").admin;
    let version = async || number(&state(out).await["services"][0]["version"]["counter"]);
    let before = version().await;
    // Its stream to the registry breaks, which is a change for certain.
    bed.kill("probe-2·sidecar");
    eventually("the change has come", LIMIT, async || version().await > before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_log_filter_can_be_set_for_a_while() {
    let bed = &Bed::start(&probe_service(2)).await;
    probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    let out = bed.ports("keyboard").admin;
    assert_eq!(details(bed), 0, "no details without the filter");
    // As the form on the page sends it.
    let form = ("content-type", "application/x-www-form-urlencoded");
    let (status, _) = ask(out, Method::POST, "/log", &[form], "filter=info%2Cweft_sidecar%3Ddebug&for=").await;
    assert_eq!(status, 303, "the browser goes back to the page");
    change(bed).await;
    eventually("details are logged", LIMIT, async || details(bed) > 0).await;

    // A filter for a limited time. Afterwards the one before it is in force again.
    let (status, text) = ask(out, Method::PUT, "/log?filter=warn,weft_sidecar=debug&for=2s", &[], "").await;
    let log: Value = serde_json::from_str(&text).expect("JSON");
    assert!(status == 200 && (0.0..=2.0).contains(&seconds(&log["left"])), "{text}");
    eventually("its time is up", LIMIT, async || state(out).await["log"]["left"] == Value::Null).await;
    assert!(state(out).await["log"]["filter"].as_str().expect("text").contains("info"), "the one before is back");

    let (status, _) = ask(out, Method::POST, "/log?filter=", &[], "").await;
    assert_eq!(status, 200);
    let lent = async || {
        let (status, _) = ask(out, Method::POST, "/log?filter=info,weft_sidecar=debug&for=100ms", &[], "").await;
        assert_eq!(status, 200);
    };
    lent().await;
    eventually("its time is up", LIMIT, async || state(out).await["log"]["left"] == Value::Null).await;
    let before = settled(bed, out, "warn,here=info").await;
    change(bed).await;
    assert_eq!(settled(bed, out, "warn,there=info").await, before, "no details after its time");
    let (status, _) = ask(out, Method::POST, "/log?filter=", &[], "").await;
    assert_eq!(status, 200);
}

/// How many details were logged, counted once the line about this change of the filter has come.
async fn settled(bed: &Bed, port: u16, filter: &str) -> usize {
    let (status, _) = ask(port, Method::POST, &format!("/log?filter={filter}"), &[], "").await;
    assert_eq!(status, 200);
    let name = filter.split([',', '=']).nth(1).expect("a target");
    eventually("the change itself is logged", LIMIT, async || {
        bed.log().lines().any(|line| line.contains("told through the admin port to log") && line.contains(name))
    })
    .await;
    details(bed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_drained_sidecar_leaves_and_no_call_fails() {
    let bed = &Bed::start(&probe_service(3)).await;
    probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    let out = bed.ports("keyboard").admin;
    let up = async || {
        let endpoints = state(out).await["services"][0]["endpoints"].as_array().cloned().unwrap_or_default();
        endpoints.iter().filter(|endpoint| endpoint["health"] == "HEALTH_UP").count()
    };
    eventually("three replicas are up", LIMIT, async || up().await == 3).await;
    let load = Load::start(bed.channel(), "");
    let (status, text) = ask(bed.ports("probe-1").admin, Method::POST, "/drain", &[], "").await;
    assert_eq!((status, text.as_str()), (200, "draining\n"));
    eventually("the first has left", LIMIT, async || up().await == 2).await;
    let inbound = bed.ports("probe-1").inbound;
    let is_refused = async || TcpStream::connect(("127.0.0.1", inbound)).await.is_err();
    eventually("connections to it are refused at once", LIMIT, is_refused).await;
    let mut admin = AdminClient::new(channel(bed.ports("probe-2").admin));
    admin.drain(DrainRequest {}).await.expect("the command is taken");
    eventually("the second has left", LIMIT, async || up().await == 1).await;
    assert_eq!(state(bed.ports("probe-2").admin).await["unreadyReason"], "draining");
    let last = bed.pid("probe-3").to_string();
    eventually("the third answers", LIMIT, async || {
        let answer = probe(&bed.channel(), "Say", &[]).await.expect("an answer");
        answer.metadata().get("x-pid").is_some_and(|pid| *pid == *last)
    })
    .await;
    for outcome in load.stop().await {
        outcome.answer.expect("no call fails");
    }
}

/// A sidecar without a mesh, killed with the test.
struct Sidecar {
    process: Child,
    admin: u16,
}

impl Sidecar {
    /// Without a control plane: it shows its configuration all the same.
    fn start(dir: &std::path::Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        let ca = dir.join("control");
        weft_control::ca::Ca::open_or_create(&ca, &"weft.local".parse().expect("a name")).expect("a CA");
        let token = dir.join("token");
        std::fs::write(&token, "the-secret-itself").expect("the folder can be written");
        let mut command = Command::new(binary("weft-sidecar"));
        command.env_clear().envs(env.iter().copied()).args(args).stderr(Stdio::piped());
        command.arg("--trust-bundle").arg(ca.join("bundle.pem")).arg("--join-token-file").arg(token);
        let mut process = command.spawn().expect("the sidecar starts");
        let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines();
        let line = lines.find_map(|line| line.ok().filter(|line| line.contains("the sidecar runs"))).expect("it runs");
        // Its later lines are dropped: a full pipe must not stop it.
        std::thread::spawn(move || lines.for_each(drop));
        let (_, rest) = line.split_once("admin=127.0.0.1:").expect("it says where it listens");
        let port = rest.split_whitespace().next().and_then(|port| port.parse().ok()).expect("a port");
        Self { process, admin: port }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn the_configuration_shows_where_each_flag_comes_from() {
    let dir = tempfile::TempDir::new().expect("a folder");
    let any = "127.0.0.1:0";
    let args = ["--outbound", any, "--admin", any, "--metrics", any, "--control-plane", "https://127.0.0.1:9"];
    let sidecar = Sidecar::start(dir.path(), &args, &[("WEFT_DRAIN_SECONDS", "3"), ("RUST_LOG", "info,h2=warn")]);
    let state = state(sidecar.admin).await;
    let setting = |name: &str| {
        let all = state["configuration"].as_array().expect("a list");
        let found = all.iter().find(|setting| setting["name"] == name).unwrap_or_else(|| panic!("no {name}"));
        (found["value"].as_str().expect("text").to_owned(), found["origin"].as_str().expect("text").to_owned())
    };
    let is = |name: &str, value: &str, origin: &str| assert_eq!(setting(name), (value.to_owned(), origin.to_owned()));
    is("--drain-seconds", "3", "ORIGIN_ENVIRONMENT");
    is("--workers", "1", "ORIGIN_DEFAULT");
    is("--control-plane", "https://127.0.0.1:9", "ORIGIN_FLAG");
    // The port that the kernel picked, not the 0 of the flag.
    is("--admin", &format!("127.0.0.1:{}", sidecar.admin), "ORIGIN_FLAG");
    is("--service", "", "ORIGIN_DEFAULT");
    is("RUST_LOG", "info,h2=warn", "ORIGIN_ENVIRONMENT");
    is("--join-token-file", &dir.path().join("token").display().to_string(), "ORIGIN_FLAG");
    assert!(!state.to_string().contains("the-secret-itself"), "only the file of a secret is shown");
    assert_eq!(state["unreadyReason"], "no identity from the control plane yet");
}
