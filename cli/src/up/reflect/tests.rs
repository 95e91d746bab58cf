use super::*;

/// A contract `NAME` with a timeout of so many seconds.
fn contract(name: &str, seconds: i64) -> Told {
    let source = format!(
        "syntax = \"proto3\"; import \"weft/options/v1/options.proto\"; package p; message M {{}}\n\
         service {name} {{ rpc Do(M) returns (M) {{ option (weft.options.v1.method) = {{ timeout: {{ seconds: {seconds} }} }}; }} }}"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.proto");
    std::fs::write(&path, source).unwrap();
    let proto = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let mut compiler = protox::Compiler::new([folder.path(), &proto]).unwrap();
    compiler.include_imports(true).open_file(&path).unwrap();
    Told {
        descriptor_set: compiler.encode_file_descriptor_set(),
        implements: vec![format!("p.{name}")],
        incomplete: Vec::new(),
    }
}

fn with(mut contracts: Told, further: &str) -> Told {
    contracts.implements.push(further.to_owned());
    contracts
}

#[test]
fn what_belongs_to_another_service_is_not_given() {
    let mut owners = BTreeMap::from([("p.Listed".to_owned(), "users".to_owned())]);
    let (given, text) = judge("first", Ok(with(contract("A", 1), "p.Listed")), &mut owners).unwrap();
    assert_eq!(given.implements, ["p.A"]);
    assert_eq!(text, "p.A, told by server reflection; p.Listed belongs to users");
    let refused = judge("second", Ok(contract("A", 1)), &mut owners).unwrap_err();
    assert_eq!(refused, "no contract of its own: p.A belongs to first");
    assert_eq!(owners["p.Listed"], "users");

    let lacks = || vec!["it lacks a file".to_owned()];
    let (_, text) = judge("third", Ok(Told { incomplete: lacks(), ..contract("C", 1) }), &mut owners).unwrap();
    assert_eq!(text, "p.C, told by server reflection; it lacks a file");
    for (incomplete, why) in
        [(lacks(), "it lacks a file"), (Vec::new(), "it tells no contract of its own by server reflection")]
    {
        let none = Told { descriptor_set: Vec::new(), implements: Vec::new(), incomplete };
        let text = judge("fourth", Ok(none), &mut owners).unwrap_err();
        assert_eq!(text, format!("no contract known: no .proto files in mesh.yaml, and {why}"));
    }
}

#[test]
fn broken_descriptors_give_nothing_and_take_nothing() {
    let mut owners = BTreeMap::new();
    let negative = judge("first", Ok(contract("A", -1)), &mut owners).unwrap_err();
    assert!(negative.starts_with("no contract known: what it tells by server reflection is not valid: "), "{negative}");
    let undefined = judge("first", Ok(with(contract("A", 1), "p.B")), &mut owners).unwrap_err();
    assert!(undefined.contains("the descriptors define no service `p.B`"), "{undefined}");
    let silent = judge("first", Err(ReflectionError::Missing("it")), &mut owners).unwrap_err();
    assert_eq!(silent, "no contract known: no .proto files in mesh.yaml, and it does not answer server reflection");
    assert_eq!(owners, BTreeMap::new());
    judge("second", Ok(contract("A", 1)), &mut owners).unwrap();
}

#[tokio::test]
async fn a_service_waits_for_those_that_stand_before_it() {
    let (sender, told) = watch::channel(Vec::new());
    let mut notes = Notes { asked: ["a", "b", "c"].map(str::to_owned).to_vec(), told };
    let note = |service: &str| Note { service: service.to_owned(), text: "known".to_owned(), contracts: None };
    sender.send_modify(|notes| notes.push(note("a")));
    let (first, count) = notes.first(|service| service != "b", Duration::MAX).await;
    let texts: Vec<&str> = first.iter().map(|note| note.text.as_str()).collect();
    assert_eq!(count, 1);
    assert_eq!(
        texts,
        [
            "known",
            "no contract known yet: it is asked by server reflection once it is up",
            "no contract known yet: b stands before it in mesh.yaml and is asked first"
        ]
    );
}
