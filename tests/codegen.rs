//! `src/wire/generated.rs` and `generated_peer.rs` are what `proto/` yields. After a change of `proto/`,
//! run this test with `UPDATE=1` and commit them: so a build needs neither protoc nor a build script.
//! The library must compile for it: first `proto/` and this, then the code that uses what is new.

use std::path::Path;

const HEAD: &str =
    "//! Generated from proto/ by tests/codegen.rs; change proto/ and run it with UPDATE=1.\n\n";

#[test]
fn generated_code_matches_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let proto = root.join("proto");
    for (proto_files, package, file) in [
        (&["log.proto", "client.proto"][..], "rrq.v1", "generated.rs"),
        (&["peer.proto"][..], "rrq.peer.v1", "generated_peer.rs"),
    ] {
        let code = generated(&proto, proto_files, package);
        let path = root.join("src/wire").join(file);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, code).expect("the generated file is written");
            continue;
        }
        let present = std::fs::read_to_string(&path).expect("the generated file is there");
        assert!(
            present == code,
            "proto/ changed: run `UPDATE=1 cargo test --test codegen`"
        );
    }
}

/// The code of the files of one package.
fn generated(proto: &Path, files: &[&str], package: &str) -> String {
    let files = protox::compile(files, [proto]).expect("proto/ compiles");
    let module = prost_build::Module::from_protobuf_package_name(package);
    let requests = files
        .file
        .into_iter()
        .map(|file| (module.clone(), file))
        .collect();
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    let modules = config.generate(requests).expect("code is generated");
    format!("{HEAD}{}", modules[&module])
}
