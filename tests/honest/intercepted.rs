//! Cases of the suite on hosts of their own, whose packet filter redirects connections to a sidecar.

use std::path::Path;

use weft_tests::{Host, Net, root, skip, until};

use crate::{
    cases::{Case, intercepted},
    installed, missing,
    outcome::Outcome,
    run,
    table::{self, Row},
    tool::Target,
};

/// The hosts of the net. `OUTSIDE` has no redirection: it reaches the server directly.
const CLIENT: usize = 1;
const SERVER: usize = 2;
const OUTSIDE: usize = 3;

/// Lines of the sidecars' logs that are shown when a case fails.
const LINES_SHOWN: usize = 30;
const WORDS_SHOWN: [&str; 3] = [" WARN ", "call failed", "refused"];

/// The services: name, port, protocol, command below `tests/honest` or `target/honest`.
const SERVICES: [(&str, u16, &str, &str); 4] = [
    ("go", 9000, "grpc", "bin/honest-go server port=9000"),
    ("go-max-streams-10", 9001, "grpc", "bin/honest-go server port=9001 max_streams=10"),
    ("nginx", 8080, "http1", "servers/nginx 8080"),
    ("redis", 6379, "tcp", "servers/redis 6379"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn intercepted_programs_have_no_more_failures() {
    let _turn = crate::turn().await;
    if let Err(why) = Net::is_possible() {
        return skip(&why);
    }
    let cases = intercepted();
    if let Some(program) = missing(cases.iter().flat_map(Case::needs)) {
        return skip(&format!("{program} is not installed; tests/honest/install does it"));
    }
    let rows = tokio::task::spawn_blocking(move || all(&cases)).await.expect("the cases run");
    table::judge(&rows);
}

fn all(cases: &[Case]) -> Vec<Row> {
    let net = Net::of(4);
    net.start_control();
    let server = net.host(SERVER);
    for (place, (name, port, protocol, command)) in SERVICES.into_iter().enumerate() {
        let mut words = command.split(' ');
        let program = words.next().expect("a command has a program");
        let folder = if program.starts_with("bin/") { installed() } else { root().join("tests/honest") };
        server.start(name, &folder.join(program), &words.collect::<Vec<_>>(), &[("HOST", "0.0.0.0")]);
        net.front(&server, place as u16, name, port, protocol, &[]);
    }
    let client = net.host(CLIENT);
    net.start_sidecar(&client, "client", &["--intercept"]);
    client.redirect(&[]);
    // Until the control plane knows the endpoints, a sidecar cannot tell that they are in the mesh.
    until("all endpoints are known", || net.log().matches(" joined service=").count() >= SERVICES.len());
    let asked = run::asked_seconds();
    let run_case = |case: &Case| {
        let run = |host: &Host| loads(case, host, asked.unwrap_or(run::SECONDS));
        let tries = (1..).map(|tries| {
            let mut direct = asked.map(|_| run(&net.host(OUTSIDE)));
            let mesh = run(&client);
            if direct.is_none() && mesh.failed_calls() > 0 {
                direct = Some(run(&net.host(OUTSIDE)));
            }
            (tries, Row::new(case, direct, mesh))
        });
        let mut tries = tries.filter_map(|(tries, row)| row.is_sure(tries).then_some(row));
        let row = tries.next().expect("the last try is sure");
        eprintln!("{}", row.line());
        if row.is_broken() {
            let log = net.log();
            let reasons = log.lines().filter(|line| WORDS_SHOWN.iter().any(|word| line.contains(word)));
            reasons.take(LINES_SHOWN).for_each(|line| eprintln!("{line}"));
        }
        row
    };
    cases.iter().map(run_case).collect()
}

/// All loads of a case, one after the other.
fn loads(case: &Case, host: &Host, seconds: u64) -> Outcome {
    let (_, port, ..) = SERVICES.into_iter().find(|service| service.0 == case.server.name).expect("it is started");
    let target = Target { port, service: &case.server.name, seconds };
    let outcomes = case.loads.iter().map(|load| {
        let command = load.command(&target);
        let words: Vec<_> =
            command.get_args().map(|word| word.to_string_lossy().replace("127.0.0.1", "10.77.0.2")).collect();
        let output = host.run(Path::new(command.get_program()), &words.iter().map(String::as_str).collect::<Vec<_>>());
        load.tool.outcome(&output).without(load.asks_for)
    });
    outcomes.fold(Outcome::default(), Outcome::and)
}
