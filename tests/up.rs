//! `weft up`, `down`, `check` and `call`, used as a person uses them.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use weft_tests::{Bed, binary, eventually, is_alive, probe_service, root};

/// A guard that only a very slow machine reaches.
const LIMIT: Duration = Duration::from_secs(60);

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs `weft` in a folder, without the developer's own `WEFT_OUTBOUND`.
fn weft(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(binary("weft"));
    command.args(args).current_dir(folder).env_remove("WEFT_OUTBOUND").output().expect("weft starts")
}

#[test]
fn a_mistake_in_mesh_yaml_is_reported_with_line_and_field_and_starts_nothing() {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let app = binary("weft-test-app").display().to_string();
    let cases = [
        (
            format!("services:\n  probe:\n    run: {app}\n    replica: 2\n"),
            "mesh.yaml:4: services.probe.replica: unknown key; allowed: run, ",
        ),
        (
            format!("services:\n  probe:\n    run: {app}\n    replicas: two\n"),
            "mesh.yaml:4: services.probe.replicas: found the text \"two\"; allowed: a whole number from 1 to 50",
        ),
        (
            format!("services:\n  probe:\n    run: {app}\n  probe:\n    run: {app}\n"),
            "mesh.yaml:4: services.probe: there twice, first in line 2; allowed: once",
        ),
        (
            "services:\n  probe:\n    run: bin/no-such-program\n".to_owned(),
            "mesh.yaml:3: services.probe.run: no program ",
        ),
        (
            format!("services:\n  probe:\n    run: {app}\n    protos: [no-such.proto]\n"),
            "mesh.yaml:4: services.probe.protos: no such file: ",
        ),
        ("services: [\n".to_owned(), "mesh.yaml:"),
    ];
    for (yaml, told) in cases {
        fs::write(folder.path().join("mesh.yaml"), &yaml).expect("the folder can be written");
        for command in ["check", "up"] {
            let output = weft(folder.path(), &[command]);
            let text = stderr(&output);
            assert!(!output.status.success(), "weft {command} took\n{yaml}\n{text}");
            assert!(text.contains(told) && text.ends_with("1 problem; nothing was started\n"), "{command}: {text}");
            assert!(!folder.path().join(".weft").exists(), "weft {command} started something for\n{yaml}");
        }
    }
}

#[test]
fn a_missing_mesh_yaml_starts_nothing() {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let output = weft(folder.path(), &["up"]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("mesh.yaml: no such file; run this in the folder of a mesh.yaml"), "{output:?}");
}

#[test]
fn a_port_in_use_starts_nothing() {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let held = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = held.local_addr().expect("a bound socket").port();
    let app = binary("weft-test-app").display().to_string();
    let yaml = format!(
        "ports:\n  outbound: 0\n  dashboard: {port}\n  control: 0\nservices:\n  probe:\n    run: {app}\n    health: tcp\n"
    );
    fs::write(folder.path().join("mesh.yaml"), yaml).expect("the folder can be written");
    let output = weft(folder.path(), &["up"]);
    let text = stderr(&output);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains(&format!("mesh.yaml:3: ports.dashboard: port {port} is in use")), "{text}");
    assert!(text.contains("; allowed: a free port, or 0 for any"), "{text}");
    assert!(!folder.path().join(".weft/run.json").exists());
    // The file is valid all the same: `weft check` does not need the ports.
    let output = weft(folder.path(), &["check"]);
    assert!(
        output.status.success() && stdout(&output).contains("mesh.yaml: good; 1 service, 0 contracts"),
        "{output:?}"
    );
}

fn of_shop(name: &str, args: &str) -> String {
    let proto = root().join(format!("proto/shop/{name}/v1/{name}.proto"));
    format!(
        "  {name}:\n    run: ${{BIN}}/shop-{name}{args}\n    protos: [{}]\n    proto_path: ${{PROTO_PATH}}\n",
        proto.display()
    )
}

/// Services of the shop that `users` needs, and two with streams.
fn shop() -> String {
    let others = ["auth", "notifications", "products"].map(|name| of_shop(name, "")).concat();
    of_shop("users", " --data users-data") + &others
}

#[tokio::test]
async fn the_shop_starts_without_a_warning() {
    let web = "  web:\n    run: ${BIN}/shop-web\n    protocol: http1\n    health: http:/\n";
    let bed = Bed::start(&format!("{}{}{web}", shop(), of_shop("orders", ""))).await;
    // The dependencies of users and of orders.
    eventually("each service has seen those that it needs", LIMIT, async || {
        bed.log().matches("dependency is up").count() == 4
    })
    .await;
    let log = bed.log();
    let is_wrong =
        |line: &&str| [" WARN ", " ERROR ", "call refused", "call failed"].iter().any(|word| line.contains(word));
    let wrong: Vec<&str> = log.lines().filter(is_wrong).collect();
    assert!(wrong.is_empty(), "{}\nof\n{log}", wrong.join("\n"));
}

#[tokio::test]
async fn weft_up_prints_lines_of_services_and_only_warnings_of_its_own_parts() {
    let says = |name: &str, command: &str| {
        format!("  {name}:\n    run: sh -c \"{command}; exec ${{BIN}}/weft-test-app\"\n    health: tcp\n")
    };
    // Far more lines than `weft up` keeps until its table is printed, from a service that is not up yet.
    let services = says("quiet", "echo I am $WEFT_SERVICE") + &says("flood", "seq 100000");
    let bed = Bed::start_quietly(&format!("{services}build: sh -c \"echo $((40 + 2)) files compiled\"\n")).await;
    eventually("the flood's last line is printed", LIMIT, async || bed.log().contains("│ 100000\n")).await;
    let log = bed.log();
    for line in [
        "weft: building: sh -c",
        "weft: built after",
        "│ quiet-1 is ready after",
        "SIDECAR'S PAGE",
        "quiet-1          │ I am quiet",
        " lines were dropped: they came faster than they could be printed",
    ] {
        assert!(log.contains(line), "{line:?} is not in\n{log}");
    }
    for noise in ["sidecar │", "control          │", "42 files compiled", "\u{1b}["] {
        assert!(!log.contains(noise), "{noise:?} is in\n{log}");
    }
    assert!(fs::read_to_string(bed.state_dir().join("build.log")).expect("it was kept").contains("42 files compiled"));
}

#[test]
fn a_failed_build_shows_its_output_and_starts_nothing() {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let app = binary("weft-test-app").display().to_string();
    let yaml = format!(
        "build: sh -c \"echo $((40 + 2)) errors; exit 3\"\nports: {{ outbound: 0, dashboard: 0, control: 0 }}\nservices:\n  \
         probe:\n    run: {app}\n"
    );
    fs::write(folder.path().join("mesh.yaml"), yaml).expect("the folder can be written");
    let output = weft(folder.path(), &["up"]);
    let text = stderr(&output);
    assert!(!output.status.success() && text.contains("42 errors\n"), "{text}");
    assert!(text.contains("failed (exit status: 3); nothing was started"), "{text}");
    assert!(!folder.path().join(".weft/run.json").exists());
}

#[tokio::test]
async fn ctrl_c_leaves_no_process_behind() {
    let mut bed = Bed::start(&shop()).await;
    let mut pids = bed.pids();
    assert_eq!(pids.len(), 10, "control, keyboard, and two for each service");
    assert!(bed.stop().await.success(), "Ctrl-C is a good end");
    pids.retain(|pid| is_alive(*pid));
    assert!(pids.is_empty(), "{pids:?} are left:\n{}", bed.log());
    assert!(bed.log().contains("stopped; no process is left"));
    assert!(!bed.state_dir().join("run.json").exists());
    let output = bed.weft(&["down"]);
    assert!(output.status.success() && stdout(&output).starts_with("nothing runs for"), "{output:?}");
}

#[tokio::test]
async fn weft_call_lists_contracts_and_methods() {
    let bed = Bed::start(&shop()).await;
    let output = bed.weft(&["call"]);
    let text = stdout(&output);
    assert!(output.status.success(), "{}", stderr(&output));
    for line in [
        "shop.users.v1.Users\n",
        "  Create  CreateRequest → User\n",
        "  Watch   WatchRequest → stream Event\n",
        "shop.products.v1.Products\n",
        "  Import  stream Product → ImportResponse\n",
        "  Stream  stream NotifyRequest → stream Notification\n",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    let one = stdout(&bed.weft(&["call", "shop.auth.v1.Auth"]));
    assert!(one.starts_with("shop.auth.v1.Auth\n") && !one.contains("Users"), "{one}");
}

/// Creates a user with `weft call`. Returns it, and all that was printed.
fn create(bed: &Bed, name: &str, email: &str) -> (Value, Output) {
    let request = serde_json::json!({"name": name, "email": email}).to_string();
    let output = bed.weft(&["call", "shop.users.v1.Users/Create", &request]);
    assert!(output.status.success(), "{}", stderr(&output));
    (serde_json::from_slice(&output.stdout).expect("an answer is JSON"), output)
}

#[tokio::test]
async fn weft_call_calls_unary_methods() {
    let bed = Bed::start(&shop()).await;
    let (user, output) = create(&bed, "Ada", "ada@Example.com");
    // auth and notifications were called, too: auth writes the domain in lower case.
    assert_eq!(user["email"], "ada@example.com");
    let id = user["id"].as_str().expect("an id");
    let told = bed.weft(&[
        "call",
        "--compact",
        "shop.notifications.v1.Notifications/List",
        &format!("{{\"userId\":\"{id}\"}}"),
    ]);
    assert!(stdout(&told).contains("Welcome to the shop, Ada!"), "{told:?}");
    assert_eq!(stdout(&told).lines().count(), 1);

    // The printed address leads to the trace.
    let text = stderr(&output);
    let trace = text.lines().find_map(|line| line.strip_prefix("trace: ")).expect("the trace's address");
    let start = format!("http://127.0.0.1:{}/traces/", bed.dashboard());
    let trace = trace.strip_prefix(&start).unwrap_or_else(|| panic!("{trace} does not begin with {start}"));
    let page = format!("/traces/{trace}");
    eventually("the trace is shown there", LIMIT, async || {
        let (status, body) = weft_tests::get(bed.dashboard(), &page).await;
        status == 200 && body.contains("shop.users.v1.Users/Create") && body.contains("shop.auth.v1.Auth/Validate")
    })
    .await;
}

#[tokio::test]
async fn weft_call_calls_streaming_methods() {
    let bed = Bed::start(&shop()).await;
    let output = bed.weft(&["call", "-c", "shop.products.v1.Products/Search", r#"{"query":"tea"}"#]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(lines(&output)[0]["id"], "teapot");
    assert!(lines(&bed.weft(&["call", "-c", "shop.products.v1.Products/Search"])).len() >= 12);

    let mut import = Command::new(binary("weft"))
        .args(["call", "-c", "shop.products.v1.Products/Import", "-d", "-"])
        .current_dir(bed.dir())
        .env("WEFT_OUTBOUND", bed.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("weft starts");
    let products = b"{\"id\":\"tray\",\"name\":\"Tray\",\"priceCents\":\"100\"}\n{\"id\":\"jug\",\"name\":\"Jug\"}";
    import.stdin.take().expect("a pipe").write_all(products).expect("it reads");
    let output = import.wait_with_output().expect("it ends");
    assert_eq!(lines(&output), [serde_json::json!({"imported": 2})]);
    let tray = bed.weft(&["call", "-c", "shop.products.v1.Products/Get", r#"{"id":"tray"}"#]);
    assert_eq!(lines(&tray)[0]["priceCents"], "100");

    let two = r#"{"userId":"bob","text":"one"} {"userId":"bob","text":"two"}"#;
    let output = bed.weft(&["call", "-c", "shop.notifications.v1.Notifications/Stream", two]);
    let texts: Vec<Value> = lines(&output).into_iter().map(|answer| answer["text"].clone()).collect();
    assert_eq!(texts, ["one", "two"], "{}", stderr(&output));
}

/// The answers of a call with `--compact`.
fn lines(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).expect("an answer is JSON")).collect()
}

#[tokio::test]
async fn weft_call_says_what_is_wrong() {
    let bed = Bed::start(&shop()).await;
    let failed = |args: &[&str], code: i32, told: &[&str]| {
        let output = bed.weft(&[&["call"], args].concat());
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(output.stdout.is_empty(), "{args:?}: {output:?}");
        for part in told {
            assert!(text.contains(part), "{part:?} is not in the answer to {args:?}:\n{text}");
        }
    };
    let create = "shop.users.v1.Users/Create";
    failed(
        &[create, r#"{"name":"Bob","email":"bob"}"#],
        64 + 3,
        &["error: INVALID_ARGUMENT: ", "google.rpc.BadRequest ", "\"field\": \"email\"", "trace: http://"],
    );
    failed(&[create, r#"{"nam":"Bob"}"#], 1, &["nam"]);
    failed(&[create, "{"], 1, &["the request is not JSON, in value 1"]);
    failed(&["shop.users.v1.Users/Creat"], 1, &["has no method `Creat` (did you mean `Create`?)"]);
    failed(
        &["shop.user.v1.Users/Create"],
        1,
        &["no contract `shop.user.v1.Users` (did you mean `shop.users.v1.Users`?)"],
    );
    let get = "shop.users.v1.Users/Get";
    let nobody = r#"{"id":"00000000000000000000000000000000"}"#;
    failed(&[get, nobody], 64 + 5, &["error: NOT_FOUND: ", "google.rpc.ResourceInfo "]);
    // Only its deadline ends a watch, and that is an answer of the mesh.
    failed(
        &["--timeout", "300ms", "shop.users.v1.Users/Watch"],
        64 + 4,
        &["error: DEADLINE_EXCEEDED: ", "x-weft-error: deadline-exceeded"],
    );
    failed(&["--address", "127.0.0.1:1", get], 1, &["nothing answers at 127.0.0.1:1; is `weft up` running"]);
    // All services of `mesh.yaml` have announced themselves, so the mesh answers at once.
    failed(&["--service", "user", get], 64 + 12, &["x-weft-error: no-such-service", "users"]);
}

#[tokio::test]
async fn ctrl_c_ends_a_call_and_its_trace() {
    let bed = Bed::start(&shop()).await;
    let printed = bed.dir().join("events");
    let watch = Command::new(binary("weft"))
        .args(["call", "-c", "shop.users.v1.Users/Watch"])
        .current_dir(bed.dir())
        .env("WEFT_OUTBOUND", bed.url())
        .stdout(fs::File::create(&printed).expect("the folder can be written"))
        .stderr(Stdio::piped())
        .spawn()
        .expect("weft starts");
    let mut users = 0;
    eventually("an event is printed", LIMIT, async || {
        users += 1;
        let user = format!("{{\"name\":\"W\",\"email\":\"w{users}@example.com\"}}");
        bed.weft(&["call", "shop.users.v1.Users/Create", &user]);
        fs::read_to_string(&printed).is_ok_and(|events| events.contains("CREATED"))
    })
    .await;
    weft_tests::signal("-INT", watch.id());
    let output = watch.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let text = stderr(&output);
    let trace = text.lines().find_map(|line| line.strip_prefix("trace: ")).expect("the trace's address");
    let path = format!("/api/traces/{}", trace.rsplit('/').next().expect("an id"));
    eventually("its first span is in the trace", LIMIT, async || {
        let (status, body) = weft_tests::get(bed.dashboard(), &path).await;
        status == 200 && body.contains("weft-call") && body.contains("CANCELLED")
    })
    .await;
}

/// `kill -9` right after the answer: an acknowledged user is on the disk.
#[tokio::test]
async fn a_user_survives_the_death_of_users() {
    let bed = Bed::start(&shop()).await;
    let users = ["Ada", "Eve"].map(|name| create(&bed, name, &format!("{name}@example.com")).0);
    bed.kill("users-1");
    for user in users {
        let request = format!("{{\"id\":{}}}", user["id"]);
        eventually("users is back", LIMIT, async || {
            let output = bed.weft(&["call", "-c", "shop.users.v1.Users/Get", &request]);
            output.status.success() && lines(&output)[0]["name"] == user["name"]
        })
        .await;
    }
    eventually("weft up says so", LIMIT, async || bed.log().contains("users-1: started again")).await;
}

#[tokio::test]
async fn weft_down_ends_the_processes_of_a_killed_weft_up() {
    let mut bed = Bed::start(&probe_service(2)).await;
    let second = weft(bed.dir(), &["up"]);
    assert!(!second.status.success() && stderr(&second).contains("`weft up` already runs for mesh.yaml"), "{second:?}");

    let pids = bed.pids();
    bed.kill_up();
    assert!(pids.iter().any(|pid| is_alive(*pid)), "some processes are left");
    let output = bed.weft(&["down"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("stopped; 6 processes were left and were ended"), "{}", stdout(&output));
    let alive: Vec<u32> = pids.into_iter().filter(|pid| is_alive(*pid)).collect();
    assert!(alive.is_empty(), "{alive:?} are left");
    assert!(!bed.state_dir().join("run.json").exists());
}

const USERS: &str = "shop.users.v1.Users";

/// A service without `.proto` files that tells a contract of the shop by server reflection.
fn telling(name: &str, before: &str, more: &str) -> String {
    format!(
        "  {name}:\n    run: sh -c \"{before} exec ${{BIN}}/weft-test-app\"\n    env: {{ REFLECT: {USERS}{more} }}\n    \
         replicas: 2\n"
    )
}

/// Calls `Users/Create`, which answers at once. The service echoes the request.
async fn creates(bed: &Bed) {
    let create = format!("{USERS}/Create");
    eventually("the contract leads to the service", LIMIT, async || {
        let output = bed.weft(&["call", "-c", &create, r#"{"name":"Ada"}"#]);
        output.status.success() && lines(&output)[0]["id"] == "Ada"
    })
    .await;
}

#[tokio::test]
async fn a_service_without_protos_is_asked_for_its_contracts() {
    let mut bed = Bed::start_quietly(&telling("users", "", "")).await;
    let log = bed.log();
    assert!(log.contains(&format!("│ contracts    users: {USERS}, told by server reflection\n")), "{log}");
    assert!(log.contains(&format!("call --address {} {USERS}/", bed.url())), "a command to try: {log}");
    let is_wrong = |line: &&str| [" WARN ", " ERROR "].iter().any(|word| line.contains(word));
    assert_eq!(log.lines().find(is_wrong), None, "{log}");
    creates(&bed).await;
    // The contract's timeout ends a call that would take ten minutes.
    let output = bed.weft(&["call", "-H", "x-do: sleep:600000", &format!("{USERS}/Create"), "{}"]);
    assert_eq!(output.status.code(), Some(64 + 4), "{output:?}");
    assert!(stderr(&output).contains("x-weft-error: deadline-exceeded"), "{output:?}");

    // Whatever is started again has the contract, too.
    for process in ["users-1·sidecar", "users-2·sidecar", "users-1", "control"] {
        bed.kill(process);
        eventually("it is started again", LIMIT, async || bed.log().contains(&format!("{process}: started again")))
            .await;
    }
    creates(&bed).await;
    let output = bed.weft(&["restart", "users"]);
    assert!(output.status.success(), "{output:?}\n{}", bed.log());
    creates(&bed).await;
    assert!(bed.stop().await.success(), "{}", bed.log());
}

/// The first in the file has a contract, even if another has told it much earlier.
#[tokio::test]
async fn mesh_yaml_says_which_service_has_a_contract_that_two_tell() {
    let mute = "  mute:\n    run: ${BIN}/weft-test-app\n";
    let services = telling("first", "sleep 1;", ", REFLECT_VERSION: v1alpha") + &telling("second", "", "") + mute;
    let bed = Bed::start(&services).await;
    let log = bed.log();
    for line in [
        format!("│ contracts    first: {USERS}, told by server reflection\n"),
        format!("│              second: no contract of its own: {USERS} belongs to first\n"),
        "│              mute: no contract known: no .proto files in mesh.yaml, and it does not answer server reflection\n"
            .to_owned(),
    ] {
        assert!(log.contains(&line), "{line:?} is not in\n{log}");
    }
    creates(&bed).await;
    // The others are called by name, as ever.
    for service in ["second", "mute"] {
        let output = bed.weft(&["call", "-c", "--service", service, &format!("{USERS}/Create"), r#"{"name":"Eve"}"#]);
        assert!(output.status.success() && lines(&output)[0]["id"] == "Eve", "{service}: {output:?}");
    }

    // What the file lists belongs to that service, whatever another tells.
    let listed = Bed::start(
        &(telling("first", "", "") + &of_shop("users", "") + &of_shop("auth", "") + &of_shop("notifications", "")),
    )
    .await;
    let log = listed.log();
    let line = format!("│ contracts    first: no contract of its own: {USERS} belongs to users\n");
    assert!(log.contains(&line), "{log}");
    create(&listed, "Ada", "ada@example.com");
}
