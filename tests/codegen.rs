//! `src/wire/generated.rs` is what `proto/` yields. After a change of `proto/`, run this test with
//! `UPDATE=1` and commit the file: so a build needs neither protoc nor a build script. The library
//! must compile for it: first `proto/` and this, then the code that uses what is new.

use std::path::Path;

const HEAD: &str =
    "//! Generated from proto/ by tests/codegen.rs; change proto/ and run it with UPDATE=1.\n\n";

#[test]
fn generated_code_matches_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let proto = root.join("proto");
    let files = protox::compile(["log.proto", "client.proto", "peer.proto"], [&proto])
        .expect("proto/ compiles");
    let module = prost_build::Module::from_protobuf_package_name("rrq.v1");
    let requests = files
        .file
        .into_iter()
        .map(|file| (module.clone(), file))
        .collect();
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    let modules = config.generate(requests).expect("code is generated");
    let code = format!("{HEAD}{}", modules[&module]);
    let path = root.join("src/wire/generated.rs");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, code).expect("the generated file is written");
        return;
    }
    let present = std::fs::read_to_string(&path).expect("src/wire/generated.rs is there");
    assert!(
        present == code,
        "proto/ changed: run `UPDATE=1 cargo test --test codegen`"
    );
}
