//! What is copied here is what it is a copy of.

use std::fs;
use std::path::Path;

/// The functions of this name in a file, without their comments.
fn functions(file: &str, name: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
    let mut found = Vec::new();
    let mut lines = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    while let Some(line) = lines.next() {
        let is_it = |rest: &str| rest.starts_with(name) && rest[name.len()..].starts_with(['(', '<']);
        if !line.split_once("fn ").is_some_and(|(_, rest)| is_it(rest)) {
            continue;
        }
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indent}}}");
        let mut function = line.to_owned();
        while !function.ends_with(&end) {
            function.extend(["\n", lines.next().unwrap()]);
        }
        found.push(function);
    }
    found
}

#[test]
fn what_is_copied_is_word_for_word_the_same() {
    let copies = [
        ("connection.rs", "../../src/shared/connection.rs", "register"),
        ("connection.rs", "../../src/shared/connection.rs", "register_slow"),
        ("connection.rs", "../../src/shared/connection.rs", "clear_other_waker"),
        ("connection.rs", "../../src/shared/connection.rs", "take_other_waker"),
        ("connection.rs", "../../src/shared/connection.rs", "other_waker"),
        ("connection.rs", "../../src/shared/connection.rs", "wake"),
        ("sync.rs", "../../src/sync.rs", "listen"),
        ("sync.rs", "../../src/sync.rs", "notify"),
        ("on_servers.rs", "../../src/shared/account.rs", "emptied"),
        ("on_servers.rs", "../../src/shared/mod.rs", "has_permit"),
        ("on_servers.rs", "../../src/shared/mod.rs", "permit"),
        ("on_servers.rs", "../../src/drain/mod.rs", "deadline"),
        ("on_servers.rs", "../../src/accept/admission.rs", "enqueue"),
        ("on_workers.rs", "../../src/workers/pool.rs", "wake"),
        ("on_workers.rs", "../../src/workers/pool.rs", "count_off"),
        ("on_workers.rs", "../../src/workers/pool.rs", "stop"),
        ("on_workers.rs", "../../src/workers/pool.rs", "is_over"),
        ("on_workers.rs", "../../src/workers/worker.rs", "park"),
        ("on_workers.rs", "../../src/workers/worker.rs", "unpark_if_parked"),
        ("on_workers.rs", "../../src/workers/worker.rs", "is_driver"),
    ];
    for (copy, original, name) in copies {
        let copied = functions(&format!("src/{copy}"), name);
        let originals = functions(original, name);
        let is_same = copied.iter().any(|copied| originals.contains(copied));
        assert!(is_same, "{name} of {copy} is not that of {original}: {copied:#?}");
    }
}
