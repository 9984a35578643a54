//! What `docs/promises.md` names is there: every file that it links, and every test in it. So is what
//! `docs/architecture.md` names, and what the other pages link.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

#[test]
fn every_promise_names_tests_that_are_run() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let text = fs::read_to_string(docs.join("promises.md")).unwrap();
    let promises: Vec<_> = text.split("\n## ").skip(1).collect();
    assert!(promises.len() > 16);
    for promise in promises {
        let (title, text) = promise.split_once('\n').unwrap();
        // Each item that begins with a link is a file, and tests in it.
        let items: Vec<_> = text.split("\n- [").skip(1).collect();
        assert!(!items.is_empty(), "{title}: no tests");
        for item in items {
            let (item, _next) = item.split_once("\n\n").unwrap_or((item, ""));
            let (_, link) = item.split_once("](").expect("a link");
            let (file, names) = link.split_once(')').expect("a link");
            let source = fs::read_to_string(docs.join(file))
                .unwrap_or_else(|error| panic!("{title}: {file}: {error}"));
            let tests = tests(&source);
            let names: Vec<_> = names.split('`').skip(1).step_by(2).collect();
            assert!(!names.is_empty(), "{title}: {file}: no tests");
            for name in names {
                assert!(tests.contains(name), "{title}: {file}: no test {name}");
            }
        }
    }
}

#[test]
fn every_link_leads_to_a_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["", "docs", "examples"].map(|folder| root.join(folder));
    let files = folders
        .iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap());
    let files = files.map(|entry| entry.unwrap().path());
    for page in files.filter(|file| file.extension().is_some_and(|ending| ending == "md")) {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1) {
            let (link, _) = link.split_once(')').expect("the end of a link");
            let (file, _heading) = link.split_once('#').unwrap_or((link, ""));
            let is_there = file.contains("://") || page.parent().unwrap().join(file).exists();
            assert!(is_there, "{}: {link} leads nowhere", page.display());
        }
    }
}

/// Of each file that it links: the functions and types named behind the link, and the numbers of what
/// must hold.
#[test]
fn the_architecture_names_what_is_there() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let text = fs::read_to_string(docs.join("architecture.md")).unwrap();
    let mut checked = 0;
    for link in text.split("](../src/").skip(1) {
        let (file, after) = link.split_once(')').expect("the end of a link");
        let source = fs::read_to_string(docs.join("../src").join(file)).unwrap();
        // Up to the next link, or the end of the item.
        let after = after.split(['[', '\n', '|']).next().unwrap_or_default();
        for name in after.split('`').skip(1).step_by(2) {
            let is_there = ["fn", "struct", "enum", "trait"]
                .iter()
                .any(|kind| source.contains(&format!("{kind} {name}")));
            assert!(is_there, "{file}: no {name}");
            checked += 1;
        }
        for number in after
            .split([' ', ','])
            .filter(|it| it.parse::<u32>().is_ok())
        {
            let stated = format!("//! {number}. ");
            assert!(
                source.contains(&stated),
                "{file}: nothing is numbered {number}"
            );
            checked += 1;
        }
    }
    assert!(checked > 60, "{checked}");
}

/// The numbers to copy go together: a pod's grace and a unit's time-out leave room for a whole stop, and
/// the probes ask where the server answers.
#[test]
fn the_time_that_a_supervisor_gives_is_enough_for_a_stop() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/kubernetes.md")).unwrap();
    let number = |text: &str, before: &str| -> u64 {
        let (_, after) = text.split_once(before).expect(before);
        let end = after.find(|it: char| !it.is_ascii_digit()).unwrap();
        after[..end].parse().expect(before)
    };
    let lame_duck = number(&page, "lame_duck(Duration::from_secs(");
    let deadline = number(&page, "deadline(Duration::from_secs(");
    let grace = number(&page, "terminationGracePeriodSeconds: ");
    assert!(grace >= lame_duck + deadline + 2, "{grace}");
    let (readiness, liveness) = page.split_once("livenessProbe").unwrap();
    let readiness = &readiness[readiness.find("readinessProbe").unwrap()..];
    let news = number(readiness, "periodSeconds: ") * number(readiness, "failureThreshold: ");
    assert!(lame_duck > news, "{news}");
    let health = number(&page, ".health(\"0.0.0.0:");
    for (probe, path) in [(readiness, "/ready"), (liveness, "/live")] {
        let asked = format!("httpGet: {{ path: {path}, port: {health} }}");
        assert!(probe.contains(&asked), "{asked}");
    }

    let config = fs::read_to_string(root.join("src/config.rs")).unwrap();
    let by_default = number(&config, "const DEADLINE: Duration = Duration::from_secs(");
    for unit in ["echo.service", "stored.service"] {
        let unit = fs::read_to_string(root.join("examples/systemd").join(unit)).unwrap();
        assert!(number(&unit, "\nTimeoutStopSec=") >= by_default + 2);
        assert!(unit.contains("\nType=notify\n"));
    }
}

/// A line of the log says a thing once: its sentence is complete, and its one key is the number of the
/// connection, which no sentence has. So says `docs/running.md`.
#[test]
fn the_log_has_no_key_but_the_connections_number() {
    let mut checked = 0;
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let source = fs::read_to_string(&path).unwrap();
            for call in source.split("target: \"gracious\",").skip(1) {
                let (keys, _sentence) = call.split_once('"').expect("a sentence");
                let keys = keys.trim().trim_start_matches("level,").trim();
                let is_one = keys.matches('=').count() == 1 && keys.starts_with("conn = ");
                assert!(keys.is_empty() || is_one, "{}: {keys}", path.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 20, "{checked}");
}

/// The names of the tests in a file: of what is marked as one, and of what is given to a macro that
/// makes one for each runtime, or for each number of workers. A body that was left out there is
/// never run, and is no test.
fn tests(source: &str) -> HashSet<&str> {
    let marked = source.split("#[test]").skip(1).filter_map(|rest| {
        let (_, function) = rest.split_once("fn ")?;
        Some(function.split_once('(')?.0)
    });
    let macros = ["on_every_runtime", "on_every_engine", "on_workers"].into_iter();
    let lists = macros.flat_map(|name| source.split(name).skip(1));
    let lists = lists.filter_map(|rest| {
        let (_, list) = rest.split_once("!(")?;
        Some(list.split_once(");")?.0)
    });
    // `name, name`, or `name: child, parent; name: child, parent`; attributes may come before.
    let listed = lists.flat_map(|list| {
        let separator = if list.contains(':') { ';' } else { ',' };
        list.split(separator).filter_map(|entry| {
            let (name, _) = entry.split_once(':').unwrap_or((entry, ""));
            name.rsplit(']').next().map(str::trim)
        })
    });
    marked.chain(listed).collect()
}
