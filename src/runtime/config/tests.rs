//! The layers together: which one wins, what each says when it is wrong, and the files in
//! `configs/`.

use super::*;

fn parse(text: &str) -> Result<Loaded, Vec<Fault>> {
    let mut reading = Reading::new(None, std::iter::empty());
    file::read_text(&mut reading, Path::new("node.toml"), text);
    reading.check();
    if reading.faults.is_empty() {
        Ok(reading.finish().expect("there is no fault"))
    } else {
        Err(reading.faults)
    }
}

fn faults(text: &str) -> Vec<Fault> {
    match parse(text) {
        Ok(_) => panic!("{text} is taken"),
        Err(faults) => faults,
    }
}

fn ask(args: &[&str], env: &[(&str, &str)]) -> Result<Asked, String> {
    let args = std::iter::once("rrq-node")
        .chain(args.iter().copied())
        .map(OsString::from);
    let env = env
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    load(args, env).map_err(|error| match error {
        NoConfig::Asked(text) => text,
        NoConfig::Wrong(report) => report.to_string(),
    })
}

fn with(args: &[&str], env: &[(&str, &str)]) -> Result<Loaded, String> {
    match ask(args, env)? {
        Asked::Run(loaded) => Ok(loaded),
        Asked::Check(..) => panic!("nobody asked for a check"),
    }
}

#[test]
fn clients_are_told_an_address_that_they_can_reach() {
    let advertised = |bound: &str, advertise: Option<&str>, members: &str| {
        let mut config = NodeConfig {
            node: Some(NodeId(2)),
            advertise: advertise.map(str::to_owned),
            ..NodeConfig::default()
        };
        assert!(keys::set(&mut config, "cluster.members", members).is_ok());
        config.advertised(bound.parse().expect("an address"))
    };
    let three = "1=rrq-1:7421,2=rrq-2:7421,3=rrq-3:7421";
    assert_eq!(advertised("127.0.0.1:7411", None, three), "127.0.0.1:7411");
    assert_eq!(advertised("0.0.0.0:7412", None, three), "rrq-2:7412");
    assert_eq!(
        advertised("[::]:7412", None, "1=a:1,2=[::2]:1,3=c:1"),
        "[::2]:7412"
    );
    assert_eq!(advertised("0.0.0.0:7411", None, "alone"), "0.0.0.0:7411");
    assert_eq!(
        advertised("0.0.0.0:7411", Some("queue.example"), three),
        "queue.example:7411"
    );
    assert_eq!(
        advertised("127.0.0.1:7411", Some("::1"), "alone"),
        "[::1]:7411"
    );
}

#[test]
fn the_file_for_three_nodes_is_sound_on_each_of_them() {
    for node in ["1", "2", "3"] {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/cluster-3.toml");
        let asked = ask(&["--config", path, "--id", node], &[]);
        let Ok(Asked::Run(loaded)) = asked else {
            panic!("{asked:?}");
        };
        assert_eq!(loaded.config.members.len(), 3);
    }
}

#[test]
fn the_files_in_configs_hold_every_key_with_its_default() {
    let defaults = NodeConfig::default();
    for (name, text) in [
        ("single.toml", include_str!("../../../configs/single.toml")),
        ("dev.toml", include_str!("../../../configs/dev.toml")),
    ] {
        let Ok(loaded) = parse(text) else {
            panic!("{name} is not sound")
        };
        let lines: Vec<&str> = text.lines().collect();
        for setting in loaded.settings {
            let key = setting.key.name;
            let Origin::File { line, .. } = setting.origin else {
                panic!("{name} does not name {key}")
            };
            assert!(
                lines[line - 2].starts_with('#'),
                "{name}:{line}: {key} has no words about it"
            );
            let default = keys::show(&defaults, key);
            if setting.value == default {
                continue;
            }
            // Only a file that differs on purpose, and says so.
            let shown = Setting {
                value: default,
                ..setting
            };
            let remark = format!("# default: {}", shown.toml());
            assert!(
                name != "single.toml" && lines[line - 1].ends_with(&remark),
                "{name}:{line}: {key} has another value than the default: say `{remark}`"
            );
        }
    }
}

#[test]
fn a_typo_is_shown_with_its_place_and_the_nearest_key() {
    let fault = faults("[log]\nlevle = \"info\"\n").remove(0);
    assert_eq!(
        fault.report().to_string(),
        "error[RRQ-2002]: unknown key `log.levle`: did you mean `log.level`?\n  \
         where: node.toml:2:1\n         2 | levle = \"info\"\n           | ^^^^^\n  \
         fix:   `rrqctl config show` lists every key; configs/single.toml of the source has their bounds"
    );
    let entries: Vec<String> = faults("[lisen]\nclient = \"x\"\n[log]\nlevel = \"loud\"\n")
        .iter()
        .map(Fault::entry)
        .collect();
    assert_eq!(
        entries,
        [
            "node.toml:1:2: unknown key `lisen`: did you mean `listen`?\n\
             1 | [lisen]\n  |  ^^^^^",
            "node.toml:4:9: log.level = \"loud\": must be error, warn, info, debug or trace\n\
             4 | level = \"loud\"\n  |         ^^^^^^",
        ]
    );
    assert!(parse("[log\n").is_err());
    assert!(parse("dev = [1]\n").is_err());
}

#[test]
fn flags_win_over_the_environment_and_bounds_hold_everywhere() {
    let env = [
        ("RRQ_SHARDS__COUNT", "3"),
        ("RRQ_LIMITS__PAYLOAD_MAX", "64KiB"),
    ];
    let config = with(&["--shards", "2"], &env).expect("sound").config;
    assert_eq!(config.shards, Shards::Exactly(2));
    assert_eq!(config.payload_bytes_max, 64 << 10);
    let error = with(&["--payload-max", "5MiB"], &[]).expect_err("too large");
    assert!(
        error.contains("--payload-max = \"5MiB\": must be 1B to 4MiB"),
        "{error}"
    );
    assert!(error.starts_with("error[RRQ-2001]"), "{error}");
    let error = with(&["--shards", "0"], &[("RRQ_DEV", "maybe")]).expect_err("two");
    assert!(
        error.contains("2 errors") && error.contains("RRQ_DEV"),
        "{error}"
    );
    let error = with(&["--listen", "0.0.0.0:7411"], &[]).expect_err("open to all");
    assert!(error.contains("--insecure"), "{error}");
    assert!(error.contains("listen.client (flag --listen)"), "{error}");
    assert!(with(&["--listen", "0.0.0.0:7411", "--insecure"], &[]).is_ok());
    let error = with(&["--admin", "127.0.0.1:7411"], &[]).expect_err("one port for two");
    assert!(error.contains("cannot share"), "{error}");
    let error = with(&["--shrads", "2"], &[]).expect_err("a typo");
    assert!(
        error.starts_with("error[RRQ-2001]") && error.contains("--shards"),
        "{error}"
    );
    assert!(
        with(&["--help"], &[])
            .expect_err("help")
            .contains("--shard-per-core")
    );
}

#[test]
fn each_value_knows_who_set_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("node.toml");
    std::fs::write(
        &path,
        "dev = true\n\n[log]\nlevel = \"warn\"\nformat = \"json\"\n",
    )
    .expect("a file can be written");
    let path_text = path.to_str().expect("a path of ours");
    let env = [(CONFIG_VARIABLE, path_text), ("RRQ_LOG__LEVEL", "debug")];
    let loaded = with(&["--log-format", "text"], &env).expect("sound");
    let shown = |key: &str| {
        let setting = loaded
            .settings
            .iter()
            .find(|setting| setting.key.name == key);
        let setting = setting.expect("every key is there");
        format!("{} <- {}", setting.toml(), setting.origin)
    };
    assert_eq!(shown("dev"), format!("true <- {path_text}:1"));
    assert_eq!(
        shown("log.level"),
        "\"debug\" <- environment variable RRQ_LOG__LEVEL"
    );
    assert_eq!(shown("log.format"), "\"text\" <- flag --log-format");
    assert_eq!(shown("queue_defaults.lease"), "\"30s\" <- default");
    assert_eq!(loaded.settings.len(), KEYS.len());
    let error = with(&["--config", "no/such.toml"], &[]).expect_err("no file");
    assert!(error.contains("cannot read no/such.toml"), "{error}");
}

#[test]
fn an_unknown_variable_is_a_warning_and_those_of_others_are_not() {
    let env = [
        ("RRQ_LOG__LEVLE", "debug"),
        ("RRQ_SOMETHING_ELSE_ALTOGETHER", "1"),
        ("RRQ_SERVER", "127.0.0.1:7411"),
        ("RRQ_PORT_7411_TCP", "tcp://10.0.0.1:7411"),
        ("PATH", "/bin"),
    ];
    let loaded = with(&[], &env).expect("warnings stop nothing");
    let shown: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "warning[RRQ-2002]: environment variable RRQ_LOG__LEVLE is no key and has no effect\n  \
             fix:   did you mean RRQ_LOG__LEVEL?",
            "warning[RRQ-2002]: environment variable RRQ_SOMETHING_ELSE_ALTOGETHER is no key and \
             has no effect\n  fix:   `rrqctl config show` lists every key; configs/single.toml of the source has their bounds",
        ]
    );
}

#[test]
fn a_check_is_made_of_a_bad_configuration_too() {
    let asked = ask(&["check", "--format", "json", "--shards", "0"], &[]).expect("a check");
    let Asked::Check(Err(report), CheckFormat::Json) = asked else {
        panic!("not a check of a bad configuration: {asked:?}")
    };
    assert_eq!(report.code, Code::BadArgument);
}

#[test]
fn a_folder_whose_name_looks_like_a_number_is_shown_as_a_text() {
    for name in ["007", ".5", "5.", "1e5", "true"] {
        let text = format!("[node]\ndata_dir = \"{name}\"\n");
        let loaded = parse(&text).unwrap_or_else(|_| panic!("{name} is a folder"));
        let shown = loaded.settings.iter().map(|setting| {
            let (section, key) = setting.key.name.rsplit_once('.').unwrap_or_default();
            let key = if key.is_empty() {
                setting.key.name
            } else {
                key
            };
            let dot = if section.is_empty() { "" } else { "." };
            format!("{section}{dot}{key} = {}\n", setting.toml())
        });
        let again = parse(&shown.collect::<String>());
        let again = again.unwrap_or_else(|faults| panic!("{name}: {}", faults[0].entry()));
        assert_eq!(again.config.data_dir, Path::new(name));
    }
}

#[test]
fn many_errors_in_a_long_line_make_a_short_report() {
    let keys: Vec<String> = (0..2000).map(|n| format!("key{n} = 1")).collect();
    let text = format!("node = {{ {} }}", keys.join(", "));
    let mut reading = Reading::new(None, std::iter::empty());
    file::read_text(&mut reading, Path::new("node.toml"), &text);
    let report = reading.finish().expect_err("no key is known").to_string();
    assert!(report.len() < 10_000, "{} bytes", report.len());
    assert!(
        report.contains("2000 errors in the configuration"),
        "{report}"
    );
    assert!(report.contains("and 1980 more"), "{report}");
    let excerpt = "1 | node = { key0 = 1, key1 = 1,";
    assert!(report.contains(excerpt), "{report}");
    let marked = report.lines().find(|line| line.contains("^^^^"));
    let line = report.lines().find(|line| line.contains("1 | ..."));
    let (marked, line) = (marked.expect("a mark"), line.expect("a cut line"));
    assert!(line.ends_with("..."), "{line}");
    assert!(marked.len() < 200 && line.len() < 200);
}
