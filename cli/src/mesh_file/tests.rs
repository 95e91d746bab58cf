use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use weft_contracts::sources::OPTIONS;
use weft_mesh::policy::ServicePolicy;

use super::*;

const USERS: &str = r#"
syntax = "proto3";
package demo.v1;
import "weft/options/v1/options.proto";
service Users {
  option (weft.options.v1.service) = { timeout: { seconds: 5 } };
  rpc Get(Request) returns (Request);
}
message Request { string id = 1; }
"#;

/// A folder with a program and a contract in it.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("proto/users.proto", USERS);
    write("proto/broken.proto", "syntax = \"proto3\";\nmessage {\n");
    write("proto/empty.proto", "syntax = \"proto3\";\n");
    write("proto/future.proto", "edition = \"2023\";\nservice S {}\n");
    write(
        "proto/more.proto",
        "syntax = \"proto3\";\nimport \"users.proto\";\nservice More { rpc Get(demo.v1.Request) returns (demo.v1.Request); }\n",
    );
    write("proto/wrong.proto", &USERS.replace("seconds: 5", "seconds: -5"));
    write("bin/users", "#!/bin/sh\n");
    write("bin/data", "no program");
    fs::set_permissions(dir.path().join("bin/users"), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn check(folder: &Path, text: &str) -> Result<MeshFile, Problems> {
    MeshFile::check(Path::new("mesh.yaml"), folder, text, Programs::MustExist)
}

/// The problems of a file, without the folder's changing name, and without the last line.
fn problems(text: &str) -> String {
    let dir = folder();
    let told = check(dir.path(), text).expect_err("a file with problems").to_string();
    let told =
        told.replace(&format!("{}/", dir.path().display()), "FOLDER/").replace(dir.path().to_str().unwrap(), "FOLDER");
    told.lines().filter(|line| !line.ends_with("nothing was started")).collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn assert_problems(text: &str, expected: &[&str]) {
    assert_eq!(problems(text), expected.join("\n"));
}

#[test]
fn a_good_file_is_read_whole() {
    let dir = folder();
    let mesh = check(
        dir.path(),
        r#"
namespace: shop
ports: { outbound: 0, control: 16000 }
traces: { otlp: http://127.0.0.1:4317/, sample: 0.5 }
services:
  users:
    run: bin/users --port ${PORT} --name '${NAME} x'
    protos: [proto/users.proto]
    env: { NUMBER: 007, TRUE: yes, FLOAT: 1.50 }
  web:
    run: bin/users
    protocol: http1
    connect: true
    upgrades: [chatter]
    health: http:/ready
    port: 9000
"#,
    )
    .unwrap();
    assert_eq!(mesh.namespace, "shop");
    assert_eq!(mesh.trust_domain.as_str(), "weft.local");
    assert_eq!(mesh.ports.outbound, Port { number: 0, line: Some(3) });
    assert_eq!(mesh.ports.dashboard, Port { number: 15080, line: None });
    assert_eq!(mesh.otlp.as_deref(), Some("http://127.0.0.1:4317"));
    assert_eq!(mesh.sample, 0.5);
    let [users, web] = &mesh.services[..] else { panic!("two services") };
    assert_eq!(users.run.arguments_with(7, "users-1"), ["--port", "7", "--name", "users-1 x"]);
    assert_eq!(users.run.program, dir.path().join("bin/users"));
    assert_eq!(users.contracts.as_ref().unwrap().implements, ["demo.v1.Users"]);
    let env: Vec<_> = users.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(env, ["NUMBER=007", "TRUE=yes", "FLOAT=1.50"]);
    assert_eq!((web.protocol, web.health.as_deref()), (Protocol::Http1, Some("http:/ready")));
    assert_eq!((web.answers_connect, users.answers_connect), (true, false));
    assert_eq!((&web.upgrades[..], &users.upgrades[..]), (&["chatter".parse().unwrap()][..], &[][..]));
    assert_eq!(web.port, Some(Port { number: 9000, line: Some(16) }));
}

#[test]
fn every_unknown_key_is_reported_with_the_closest_known_one() {
    assert_problems(
        "namespaces: shop\nservices:\n  users:\n    run: bin/users\n    replica: 2\n    colour: red\n",
        &[
            "mesh.yaml:1: namespaces: unknown key; allowed: namespace, trust_domain, visibility, access, build, ports, traces, services \
             (did you mean `namespace`?)",
            "mesh.yaml:5: services.users.replica: unknown key; allowed: run, protos, proto_path, protocol, connect, \
             upgrades, access, health, replicas, port, forward, env (did you mean `replicas`?)",
            "mesh.yaml:6: services.users.colour: unknown key; allowed: run, protos, proto_path, protocol, connect, \
             upgrades, access, health, replicas, port, forward, env",
        ],
    );
}

#[test]
fn a_wrong_type_or_value_is_reported_with_what_was_found() {
    assert_problems(
        "namespace: [shop]\ntrust_domain: Weft\nports: { outbound: 70000, control: x }\ntraces: { otlp: localhost, sample: 2 }\n\
         services:\n  users:\n    run: bin/users\n    replicas: two\n    protocol: http2\n    health: http:ready\n  Web: { run: 5 }\n  orders:\n",
        &[
            "mesh.yaml:1: namespace: found a list; allowed: 1 to 63 of a-z, 0-9 and -, no - at either end",
            "mesh.yaml:2: trust_domain: `Weft` is not a trust domain: 1 to 255 of a-z, 0-9, ., - and _",
            "mesh.yaml:3: ports.outbound: found the number 70000; allowed: a whole number from 0 to 65535 (0: any that is free)",
            "mesh.yaml:3: ports.control: found the text \"x\"; allowed: a whole number from 0 to 65535 (0: any that is free)",
            "mesh.yaml:4: traces.otlp: found the text \"localhost\"; allowed: the address of an OTLP/gRPC receiver, such as \
             http://127.0.0.1:4317",
            "mesh.yaml:4: traces.sample: found the number 2; allowed: a number from 0 to 1",
            "mesh.yaml:8: services.users.replicas: found the text \"two\"; allowed: a whole number from 1 to 50",
            "mesh.yaml:9: services.users.protocol: found the text \"http2\"; allowed: grpc, http1, tcp",
            "mesh.yaml:10: services.users.health: found the text \"http:ready\"; allowed: grpc, tcp, http:/path",
            "mesh.yaml:11: services.Web: found the name \"Web\"; allowed: 1 to 63 of a-z, 0-9 and -, no - at either end",
            "mesh.yaml:11: services.Web.run: found the number 5; allowed: a command line, split as a shell would but run without a shell",
            "mesh.yaml:12: services.orders: found nothing; allowed: a table of run, protos, proto_path, protocol, connect, \
             upgrades, access, health, replicas, port, forward, env",
        ],
    );
}

#[test]
fn only_a_service_of_http1_answers_connect_itself() {
    assert_problems(
        "services:\n  users:\n    run: bin/users\n    connect: true\n  web:\n    run: bin/users\n    protocol: http1\n    connect: always\n",
        &[
            "mesh.yaml:4: services.users.connect: found true with protocol grpc; allowed: true with protocol http1",
            "mesh.yaml:8: services.web.connect: found the text \"always\"; allowed: true or false",
        ],
    );
}

#[test]
fn an_upgrade_to_http_is_not_declared() {
    assert_problems(
        "services:\n  users:\n    run: bin/users\n    upgrades: [chatter, h2c, a b]\n  db:\n    run: bin/users\n    protocol: tcp\n    \
         upgrades: [chatter]\n",
        &[
            "mesh.yaml:4: services.users.upgrades: found \"h2c\"; allowed: one in which neither HTTP nor TLS goes on, as nobody \
             would see who calls in it",
            "mesh.yaml:4: services.users.upgrades: found \"a b\"; allowed: a protocol's name, as in the header Upgrade",
            "mesh.yaml:8: services.db.upgrades: found a name with protocol tcp; allowed: with protocol http1 or grpc",
        ],
    );
}

#[test]
fn two_services_of_one_name_and_the_mesh_s_own_name_are_refused() {
    assert_problems(
        "services:\n  users: { run: bin/users }\n  users: { run: bin/users }\n  keyboard: { run: bin/users }\n",
        &[
            "mesh.yaml:3: services.users: there twice, first in line 2; allowed: once",
            "mesh.yaml:4: services.keyboard: this name is reserved for your own sidecar at the keyboard; allowed: any other",
        ],
    );
}

#[test]
fn a_program_that_cannot_run_is_reported() {
    assert_problems(
        "services:\n  a: { run: bin/user }\n  b: { run: bin/data }\n  c: { run: no-such-program }\n  d: { run: \"bin/users 'x\" }\n  \
         e: { run: 'bin/users ${PROT}' }\n  f: { protocol: grpc }\n  g: { run: bin }\n  h: { run: ./bin }\n",
        &[
            "mesh.yaml:2: services.a.run: no program FOLDER/bin/user (did you mean `bin/users`?); allowed: an executable file, \
             relative to the mesh file",
            "mesh.yaml:3: services.b.run: FOLDER/bin/data is not executable; allowed: an executable file, relative to the mesh file",
            "mesh.yaml:4: services.c.run: no program `no-such-program` in PATH; allowed: a program in PATH, or a path with a / \
             relative to the mesh file",
            "mesh.yaml:5: services.d.run: found \"bin/users 'x\"; allowed: a command line whose quotes are closed",
            "mesh.yaml:6: services.e.run: unknown variable `${PROT}`; allowed: ${PORT}, ${NAME}",
            "mesh.yaml:7: services.f.run: missing; allowed: a command line, split as a shell would but run without a shell",
            "mesh.yaml:8: services.g.run: no program `bin` in PATH; allowed: a program in PATH, or a path with a / relative to \
             the mesh file",
            "mesh.yaml:9: services.h.run: FOLDER/./bin is a folder; allowed: an executable file, relative to the mesh file",
        ],
    );
}

#[test]
fn a_program_that_is_still_to_be_built_may_be_missing() {
    let dir = folder();
    let text = "build: bin/users\nservices:\n  users: { run: bin/later }\n";
    let load = |programs| MeshFile::check(Path::new("mesh.yaml"), dir.path(), text, programs);
    assert!(load(Programs::MayBeBuilt).is_ok());
    assert!(load(Programs::MustExist).is_err());
}

#[test]
fn a_service_implements_what_its_own_files_define_and_not_what_they_import() {
    let dir = folder();
    let mesh = check(dir.path(), "services: { more: { run: bin/users, protos: proto/more.proto } }\n").unwrap();
    let contracts = mesh.services[0].contracts.as_ref().unwrap();
    assert_eq!(contracts.implements, ["More"]);
    let whole = ServicePolicy::from_descriptors(&contracts.descriptor_set, None).unwrap();
    assert!(whole.contract("demo.v1.Users").is_some(), "the import is in the set");
}

#[test]
fn contracts_that_are_missing_broken_or_badly_configured_are_reported() {
    let of = |proto: &str| problems(&format!("services:\n  users:\n    run: bin/users\n    protos: [{proto}]\n"));
    assert_eq!(
        of("proto/user.proto"),
        "mesh.yaml:4: services.users.protos: no such file: FOLDER/proto/user.proto (did you mean `proto/users.proto`?); \
         allowed: .proto files, relative to the mesh file"
    );
    let broken = of("proto/broken.proto");
    assert!(
        broken.starts_with("mesh.yaml:4: services.users.protos: broken.proto:2:9: expected an identifier"),
        "{broken}"
    );
    assert_eq!(
        of("proto/empty.proto"),
        "mesh.yaml:4: services.users.protos: no `service` is defined in proto/empty.proto; allowed: files that define one"
    );
    let wrong = of("proto/wrong.proto");
    assert!(wrong.starts_with("mesh.yaml:4: services.users.protos: wrong.proto:6: option"), "{wrong}");
    let outside = of("../x.proto");
    assert!(outside.contains("no such file"), "{outside}");
    let future = of("proto/future.proto");
    assert!(future.starts_with("mesh.yaml:4: services.users.protos: future.proto:1:1:"), "{future}");
}

#[test]
fn fallbacks_that_lead_to_one_another_are_told() {
    let dir = folder();
    let contract = |package: &str, fallback: &str| {
        let option = format!("option (weft.options.v1.method) = {{\n      fallback: {{ {fallback} }} }};");
        let method = format!("rpc Get(Request) returns (Request) {{\n    {option} }}");
        USERS.replace("demo.v1", package).replace("rpc Get(Request) returns (Request);", &method)
    };
    let write = |name: &str, text: String| fs::write(dir.path().join("proto").join(name), text).unwrap();
    let of = |a: &str, b: &str| {
        let yaml = format!(
            "services:\n  a: {{ run: bin/users, protos: proto/{a} }}\n  b: {{ run: bin/users, protos: proto/{b} }}\n"
        );
        check(dir.path(), &yaml).map_or_else(|told| told.to_string(), |_| String::new())
    };
    write(
        "a.proto",
        contract("a.v1", "service: 'b' method: 'b.v1.Users/Get'").replace("import", "import 'b.proto'; import"),
    );
    write("b.proto", contract("b.v1", "service: 'a'"));
    let told = of("a.proto", "b.proto");
    assert!(
        told.contains("fallback.method is `b.v1.Users/Get` (b.v1.Request) returns (b.v1.Request), while"),
        "{told}"
    );
    assert!(told.starts_with("mesh.yaml:2: services.a.protos: a.proto:8: option (weft.options.v1.method)"), "{told}");

    write("c.proto", contract("c.v1", "service: 'b'"));
    write("d.proto", contract("c.v1", "service: 'a'"));
    assert_eq!(
        of("c.proto", "d.proto").lines().next().unwrap(),
        "mesh.yaml:2: services.a.protos: its fallbacks lead back to where they began: a.default c.v1.Users/Get → b.default \
         c.v1.Users/Get → a.default c.v1.Users/Get; allowed: fallbacks that end"
    );
    // What b has is another contract.
    assert_eq!(
        of("c.proto", "b.proto").lines().next().unwrap(),
        "mesh.yaml:2: services.a.protos: its fallback is b.default, whose contract does not say `stands_in_for: \
         'a.default'`; allowed: services that say so"
    );
    write("e.proto", USERS.replace("demo.v1", "e.v1").replace("= { timeout", "= { stands_in_for: 'a' timeout"));
    assert_eq!(of("c.proto", "e.proto"), "");
}

/// The problems of a contract with this import, and a file of this name and text beside it.
fn problems_with_import(import: &str, file: &str, text: &str) -> String {
    let dir = folder();
    let path = dir.path().join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::write(dir.path().join("proto/users.proto"), USERS.replace("weft/options/v1/options.proto", import)).unwrap();
    match check(dir.path(), "services: { users: { run: bin/users, protos: proto/users.proto } }\n") {
        Ok(_) => String::new(),
        Err(told) => told.to_string().replace(dir.path().to_str().unwrap(), "FOLDER"),
    }
}

#[test]
fn a_copy_of_weft_s_own_file_may_be_older_but_not_different() {
    let file = "proto/weft/options/v1/options.proto";
    let older = OPTIONS.text.replace("  optional uint32 probes = 6;\n", "");
    assert_eq!(problems_with_import(OPTIONS.name, file, OPTIONS.text), "");
    assert_eq!(problems_with_import(OPTIONS.name, file, &older), "");
    let newer = OPTIONS.text.replace("probes = 6;", "probes = 6;\n  uint32 trials = 9;");
    let told = problems_with_import(OPTIONS.name, file, &newer);
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!(
        "mesh.yaml:1: services.users.protos: FOLDER/proto/weft/options/v1/options.proto is not this weft's \
         weft/options/v1/options.proto: `Breaker.trials` is unknown to weft {version}; allowed: no such file, as weft has \
         its own, or the same or an older one (`weft proto export --force FOLDER/proto` replaces it)\n"
    );
    assert!(told.starts_with(&expected), "{told}");
    let broken = problems_with_import(OPTIONS.name, file, "message {");
    assert!(broken.starts_with("mesh.yaml:1: services.users.protos: weft/options/v1/options.proto:1:9: "), "{broken}");
}

#[test]
fn an_import_that_is_not_found_is_reported_with_what_is_allowed() {
    let told = problems_with_import("weft/option/v1/options.proto", "proto/other.proto", "");
    let expected = "mesh.yaml:1: services.users.protos: users.proto:4:1: import 'weft/option/v1/options.proto' not found (did \
                    you mean `weft/options/v1/options.proto`?); allowed: a file under FOLDER/proto (`proto_path`); weft \
                    itself has weft/... and google/protobuf/...\n";
    assert!(told.starts_with(expected), "{told}");
    let told = problems_with_import("google/rpc/status.proto", "proto/other.proto", "");
    assert!(told.contains("import 'google/rpc/status.proto' not found; allowed: "), "{told}");
    assert!(told.contains("; weft itself has google/protobuf/...\n"), "{told}");
}

#[test]
fn later_commands_of_a_build_may_run_what_earlier_ones_make() {
    let dir = folder();
    let text = |build: &str| format!("build: {build}\nservices:\n  users: {{ run: bin/users }}\n");
    assert!(check(dir.path(), &text("[bin/users, bin/made]")).is_ok());
    let told = check(dir.path(), &text("[bin/made, bin/users]")).unwrap_err().to_string();
    assert!(told.starts_with("mesh.yaml:1: build: no program "), "{told}");
    let told = check(dir.path(), &text("[bin/users, no-such-program]")).unwrap_err().to_string();
    assert!(told.starts_with("mesh.yaml:1: build: no program `no-such-program` in PATH"), "{told}");
}

#[test]
fn ports_that_clash_are_reported() {
    assert_problems(
        "ports: { dashboard: 15001 }\nservices:\n  a: { run: bin/users, port: 9000 }\n  b: { run: bin/users, port: 9000 }\n  \
         c: { run: bin/users, port: 9001, replicas: 2 }\n",
        &[
            "mesh.yaml:1: ports.dashboard: found port 15001, which ports.outbound has too; allowed: one that is free",
            "mesh.yaml:4: services.b.port: found port 9000, which services.a.port has too; allowed: one that is free",
            "mesh.yaml:5: services.c.port: found a fixed port with 2 replicas; allowed: one or the other",
        ],
    );
}

#[test]
fn a_file_that_is_not_yaml_or_not_a_mesh_is_reported() {
    assert_problems("services: [\n", &["mesh.yaml:1: not YAML: unclosed bracket '['"]);
    assert_problems(
        "just a text\n",
        &[
            "mesh.yaml:1: found the text \"just a text\"; allowed: a table of namespace, trust_domain, visibility, access, build, ports, traces, services",
        ],
    );
    assert_problems("namespace: x\n", &["mesh.yaml:1: services: missing; allowed: a table of services by name"]);
    assert_problems("services: {}\n", &["mesh.yaml:1: services: found no service; allowed: one or more by name"]);
    assert_problems(
        "",
        &[
            "mesh.yaml:1: found nothing; allowed: a table of namespace, trust_domain, visibility, access, build, ports, traces, services",
        ],
    );
}

#[test]
fn a_missing_file_is_reported_with_what_to_do() {
    let told = MeshFile::load(Path::new("/nowhere/mesh.yaml"), Programs::MustExist).unwrap_err().to_string();
    assert!(told.starts_with("/nowhere/mesh.yaml: no such file; run this in the folder of a mesh.yaml"), "{told}");
}

#[test]
fn a_contract_of_two_services_belongs_to_the_first_in_the_file() {
    let dir = folder();
    let service = |name: &str| format!("  {name}:\n    run: bin/users\n    protos: [proto/users.proto]\n");
    let text = format!("namespace: shop\nservices:\n{}{}", service("users"), service("next"));
    let file = check(dir.path(), &text).unwrap();
    let told = file.services_file();
    let lines: Vec<&str> = told.lines().skip(2).collect();
    let users = "  \"users.shop\": { contracts: [\"demo.v1.Users\"], endpoints: 1 }";
    let next = "  \"next.shop\": { contracts: [], endpoints: 1 }";
    assert_eq!(lines, ["complete: true", "services:", users, next]);
    let shared = file.shared_contracts();
    assert_eq!(shared["demo.v1.Users"].iter().map(|name| name.name()).collect::<Vec<_>>(), ["users", "next"]);
}

#[test]
fn a_service_of_grpc_without_protos_is_asked_for_its_contracts() {
    let dir = folder();
    for (more, is_asked) in [
        ("{}", true),
        ("{ protocol: grpc, health: tcp }", true),
        ("{ protocol: http1 }", false),
        ("{ protocol: tcp }", false),
        ("{ protos: proto/users.proto }", false),
        ("{ protos: [] }", false),
    ] {
        let more = more.replacen('{', "{ run: bin/users,", 1).replace(",}", " }");
        let file = check(dir.path(), &format!("services:\n  users: {more}\n")).unwrap();
        assert_eq!(file.services[0].is_asked, is_asked, "{more}");
        // Else it could claim what another service that is asked is about to tell.
        assert_eq!(file.services_file().matches("unlisted").count(), usize::from(is_asked), "{more}");
        assert_eq!(file.services_file().contains("unlisted: grant"), is_asked, "{more}");
    }
}

#[test]
fn what_never_ends_is_not_read() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    let importing = "syntax = \"proto3\";\nimport \"endless.proto\";\nservice Importing {}\n";
    fs::write(path("proto/importing.proto"), importing).unwrap();
    for endless in ["proto/endless.proto", "mesh.yaml"] {
        std::os::unix::fs::symlink("/dev/zero", path(endless)).unwrap();
    }
    let text = "services:\n  users:\n    run: bin/users\n    protos: [proto/importing.proto]\n";
    let told = check(dir.path(), text).expect_err("the import is a device").to_string();
    assert!(told.contains("proto/endless.proto can't be used: it is not a file"), "{told}");
    let told = MeshFile::load(&path("mesh.yaml"), Programs::MustExist).expect_err("it is a device").to_string();
    assert!(told.contains("mesh.yaml: cannot be read: it is not a file"), "{told}");
}
