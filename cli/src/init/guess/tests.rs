use std::fs;

use super::*;
use crate::{
    init::render,
    mesh_file::{MeshFile, Problems, Programs},
};

const GO_MAIN: &str = "// A program.\npackage main\n\nfunc main() {}\n";
const USERS: &str = "syntax = \"proto3\";\npackage shop.users.v1;\nimport \"weft/options/v1/options.proto\";\n\
                     service Users { rpc Get(Request) returns (Request); }\nmessage Request {}\n";

/// A folder named `shop` with these files in it; it is deleted when the first value is dropped.
fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("shop");
    fs::create_dir(&folder).unwrap();
    for (name, text) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    (dir, folder)
}

/// Name, build and command of each service.
fn found(files: &[(&str, &str)]) -> Vec<(String, String, String)> {
    let (_dir, folder) = folder(files);
    let guess = look_into(&folder);
    guess.services.into_iter().map(|found| (found.name, found.build.join(" && "), found.run)).collect()
}

#[track_caller]
fn assert_found(files: &[(&str, &str)], expected: &[(&str, &str, &str)]) {
    let found = found(files);
    let found: Vec<_> = found.iter().map(|(name, build, run)| (name.as_str(), build.as_str(), run.as_str())).collect();
    assert_eq!(found, expected);
}

/// The file that is written for a folder, and what comes of loading it.
fn loaded(files: &[(&str, &str)]) -> (String, Result<MeshFile, Problems>) {
    let (_dir, folder) = folder(files);
    let text = render::mesh_file(&look_into(&folder));
    let path = folder.join("mesh.yaml");
    fs::write(&path, &text).unwrap();
    let loaded = MeshFile::load(&path, Programs::MayBeBuilt);
    (text, loaded)
}

#[test]
fn a_program_in_go_is_its_module_or_its_commands() {
    assert_found(
        &[("go.mod", "module example.com/shop/users/v2\n"), ("main.go", GO_MAIN)],
        &[("users", "go build -o bin/users .", "bin/users")],
    );
    assert_found(
        &[
            ("go.mod", "module example.com/shop\n"),
            ("shop.go", "package shop\n"),
            ("cmd/users/main.go", GO_MAIN),
            ("orders/cmd/main.go", GO_MAIN),
            ("tools/gen.go", "//go:build ignore\n\npackage main\n"),
            ("x/x_test.go", GO_MAIN),
        ],
        &[
            ("users", "go build -o bin/users ./cmd/users", "bin/users"),
            ("orders", "go build -o bin/orders ./orders/cmd", "bin/orders"),
        ],
    );
}

#[test]
fn a_program_in_rust_is_a_package_with_a_main() {
    let package = |name: &str| format!("[package]\nedition = \"2024\"\nname = \"{name}\"\n\n[dependencies]\n");
    assert_found(
        &[("Cargo.toml", &package("users")), ("src/main.rs", "")],
        &[("users", "cargo build --release", "target/release/users")],
    );
    assert_found(
        &[
            ("Cargo.toml", "[workspace]\nmembers = [\"services/*\"]\n"),
            ("services/users/Cargo.toml", &package("shop-users")),
            ("services/users/src/main.rs", ""),
            ("services/kit/Cargo.toml", &package("kit")),
            ("services/kit/src/lib.rs", ""),
            ("services/users/fuzz/Cargo.toml", &(package("fuzz") + "[[bin]]\nname = \"fuzz\"\n\n[workspace]\n")),
            ("services/orders/Cargo.toml", &(package("orders") + "[[bin]]\nname = \"shop-orders\"\n")),
        ],
        &[
            ("shop-orders", "cargo build --release", "target/release/shop-orders"),
            ("shop-users", "cargo build --release", "target/release/shop-users"),
        ],
    );
}

#[test]
fn a_program_in_python_gets_an_environment_of_its_own() {
    let pip = ".venv/bin/python -m pip install --quiet --disable-pip-version-check";
    assert_found(
        &[("requirements.txt", "flask\n"), ("app.py", "")],
        &[(
            "shop",
            &format!("python3 -m venv .venv && {pip} --requirement requirements.txt"),
            ".venv/bin/python app.py",
        )],
    );
    let project = "[project]\nname = 'User_Service'\n";
    assert_found(
        &[("pyproject.toml", project), ("users.py", "if __name__ == \"__main__\":\n    main()\n"), ("helper.py", "")],
        &[("user-service", &format!("python3 -m venv .venv && {pip} ."), ".venv/bin/python users.py")],
    );
}

#[test]
fn a_program_in_node_is_what_start_says_or_its_main_file() {
    let install = "npm install --no-audit --no-fund";
    let of = |package: &str, run: &str| {
        let files = [("package.json", package), ("lib/index.js", ""), ("index.js", "")];
        assert_found(&files, &[("web", install, run)]);
    };
    of(
        r#"{"name":"@shop/web","scripts":{"start":"node --enable-source-maps lib/index.js"}}"#,
        "node --enable-source-maps lib/index.js",
    );
    of(r#"{"name":"web","main":"./lib/index.js"}"#, "node lib/index.js");
    of(r#"{"name":"web","main":"gone.js"}"#, "node index.js");
    assert_found(
        &[("package.json", r#"{"name":"web","scripts":{"start":"next start","build":"next build"}}"#)],
        &[("web", &format!("{install} && npm run build"), "npm start")],
    );
    assert_found(&[("package.json", r#"{"devDependencies":{"prettier":"3"}}"#)], &[]);
}

#[test]
fn a_program_in_java_is_the_jar_of_its_pom() {
    let pom = "<project>\n<parent><artifactId>parent</artifactId><version>7</version></parent>\n<dependencies><dependency>\
               <artifactId>grpc-stub</artifactId><version>1</version></dependency></dependencies>\n\
               <artifactId>users</artifactId>\n</project>";
    let build = "mvn --quiet --batch-mode package";
    assert_found(&[("pom.xml", pom)], &[("users", build, "java -jar target/users-7.jar")]);
    let named = pom.replace("</project>", "<build><finalName>app</finalName></build></project>");
    assert_found(&[("pom.xml", &named)], &[("users", build, "java -jar target/app.jar")]);
    let modules = [("pom.xml", "<project><packaging>pom</packaging></project>"), ("users/pom.xml", pom)];
    assert_found(
        &modules,
        &[("users", "mvn --quiet --batch-mode --file users/pom.xml package", "java -jar users/target/users-7.jar")],
    );
}

#[test]
fn projects_in_subfolders_are_services_and_get_their_contracts() {
    let (text, loaded) = loaded(&[
        ("services/users/go.mod", "module example.com/users\nrequire google.golang.org/grpc v1\n"),
        ("services/users/main.go", GO_MAIN),
        ("services/users/cmd/tool/main.go", GO_MAIN),
        ("web/package.json", r#"{"name":"web"}"#),
        ("web/server.js", ""),
        ("web/node_modules/x/package.json", r#"{"name":"x"}"#),
        ("web/node_modules/x/index.js", ""),
        ("proto/shop/users/v1/users.proto", USERS),
        ("proto/shop/mail/v1/mail.proto", &USERS.replace("Users", "Mail").replace("users", "mail")),
        ("proto/shop/broken.proto", "message {"),
        ("proto/weft/options/v1/options.proto", weft_contracts::sources::OPTIONS.text),
    ]);
    assert!(text.contains("# Go, by services/users/go.mod\n  users:\n"), "{text}");
    assert!(text.contains("proto/shop/mail/v1/mail.proto (shop.mail.v1.Mail): add it to the `protos`"), "{text}");
    assert!(text.contains("proto/shop/broken.proto:1:9: "), "{text}");
    // Go and Node may be missing here; nothing else may be wrong.
    let problems = loaded.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let others =
        problems.lines().filter(|line| !line.contains("no program `") && !line.contains("nothing was started"));
    assert_eq!(others.collect::<Vec<_>>(), Vec::<&str>::new(), "{text}");
    for line in [
        "build:\n  - go build -C services/users/ -o bin/users .\n  - npm install --prefix web/ --no-audit --no-fund\n",
        "    run: services/users/bin/users\n",
        "    protos: [proto/shop/users/v1/users.proto]\n",
        "    run: node web/server.js\n    protocol: http1\n",
        "namespace: shop\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn a_contract_belongs_to_the_one_service_that_is_named_like_it() {
    let contract = Contract { services: vec!["shop.users.v1.Users".to_owned()], ..Contract::default() };
    assert_eq!(contract.owner(&["orders", "users"]), Some(1));
    assert_eq!(contract.owner(&["shop", "user-service"]), Some(1), "its name goes before its package");
    assert_eq!(contract.owner(&["shop-orders", "shop-users"]), Some(1));
    assert_eq!(contract.owner(&["shop-users", "users"]), Some(1));
    assert_eq!(contract.owner(&["shop-orders", "shop-mail"]), None, "a part that fits both is ignored");
    assert_eq!(contract.owner(&["orders", "mail"]), None);
}

#[test]
fn imports_start_where_the_package_says() {
    let of = |file: &str| {
        let (text, loaded) = loaded(&[("requirements.txt", "grpcio\n"), ("server.py", ""), ("sh", ""), (file, USERS)]);
        let problems = loaded.err().map(|problems| problems.to_string()).unwrap_or_default();
        assert!(!problems.contains("protos"), "{problems}\n{text}");
        text.lines().find_map(|line| line.strip_prefix("    proto_path: ")).unwrap_or("the default").to_owned()
    };
    assert_eq!(of("proto/shop/users/v1/users.proto"), "the default");
    assert_eq!(of("shop/users/v1/users.proto"), "the default");
    assert_eq!(of("users.proto"), "the default");
    assert_eq!(of("proto/users.proto"), "the default");
    assert_eq!(of("api/shop/users/v1/users.proto"), "[api]");
    assert_eq!(of("api/users.proto"), "[api]");
    assert_eq!(of("contracts/protos/users/users.proto"), "[contracts/protos]");
}

#[test]
fn an_empty_folder_gives_a_file_that_says_what_is_missing() {
    let (text, loaded) = loaded(&[]);
    let told = loaded.unwrap_err().to_string();
    let line = 1 + text.lines().position(|line| line == "    run: ./my-service --port ${PORT}").unwrap();
    assert!(told.contains(&format!("mesh.yaml:{line}: services.my-service.run: no program ")), "{told}");
    assert!(told.contains("1 problem"), "{told}");
}

#[test]
fn every_key_of_a_service_is_explained_once() {
    let (text, _) = loaded(&[("go.mod", "module users\n"), ("main.go", GO_MAIN)]);
    for key in
        ["namespace", "build", "ports", "traces", "services", "run", "protocol", "health", "replicas", "port", "env"]
    {
        let lines = text.lines().filter(|line| line.trim_start_matches(['#', ' ']).starts_with(&format!("{key}:")));
        assert_eq!(lines.count(), 1, "{key}\n{text}");
    }
}

#[test]
fn services_get_unique_and_valid_names() {
    let mut services = ["Users", "users", "keyboard", "ü", "-", &"x".repeat(70)]
        .map(|name| Found { name: name.to_owned(), ..Found::default() });
    name_apart(&mut services);
    let names = services.map(|found| found.name);
    assert_eq!(names[..5], ["users", "users-2", "keyboard-2", "service", "service-2"]);
    assert_eq!(names[5], "x".repeat(63));
}
