//! No file of `src/` imports from a layer above its own.
//!
//! ```sh
//! cargo test --test layers
//! ```
//!
//! The rules:
//! 1. Every file belongs to a layer: by its own name, or by that of its folder in `src/`.
//! 2. A file imports from layers below its own, from its own layer, and within its folder as it likes.
//! 3. Files and folders of one layer do not import each other in a circle.
//! 4. A name is imported from where it is at home, not from the exports of `lib.rs`: those hide the
//!    layer.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

/// Files of `src/`, without their ending, and its folders: from the ground up.
const LAYERS: [&[&str]; 11] = [
    &[
        "address",
        "config",
        "idle",
        "lifecycle",
        "log",
        "metrics",
        "proxy",
        "report",
        "runtime",
        "sync",
    ],
    &["socket"],
    &["workers"],
    &["tls", "transport"],
    &["listener"],
    &["shared"],
    &["connection"],
    &["handler"],
    &["accept"],
    &["drain"],
    &[
        "builder",
        "handle",
        "handover",
        "health",
        "lib",
        "progress",
        "server",
        "server_set",
        "signals",
        "succession",
        "systemd",
        "testing",
        "track",
        "web",
    ],
];

#[test]
fn no_file_imports_from_a_layer_above() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    read(&src, &src, &mut files);
    assert!(!files.is_empty());
    let complaints = complaints(&files);
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// The macros of `crate::log` see to it that no logger is called under a lock; those of the crate `log`
/// do not, and are found under the same name.
#[test]
fn every_file_that_logs_imports_the_macros_that_look_for_locks() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    read(&src, &src, &mut files);
    // The lowest of the files does without: it has looked itself.
    files.retain(|(file, _)| !["log.rs", "sync.rs"].contains(&file.as_str()));
    let macros = ["trace!", "debug!", "info!", "warn!", "error!", "log!"];
    for (file, source) in files {
        let logs = macros.map(|it| source.contains(&format!("log::{it}")));
        assert!(
            !logs.contains(&true) || source.contains("use crate::log;"),
            "src/{file}: logs without `use crate::log;`"
        );
    }
}

/// The sources below `folder`, by their paths from `src`.
fn read(src: &Path, folder: &Path, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(src, &path, files);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let name = path.strip_prefix(src).unwrap().to_str().unwrap();
            files.push((name.to_owned(), fs::read_to_string(&path).unwrap()));
        }
    }
}

/// What is against the rules, with its file, its line and the rule.
fn complaints(files: &[(impl AsRef<str>, impl AsRef<str>)]) -> Vec<String> {
    let homes: HashSet<_> = files.iter().map(|(file, _)| home(file.as_ref())).collect();
    let mut complaints = Vec::new();
    // For each home, those of its own layer that it imports from, and where.
    let mut beside: HashMap<&str, Vec<(String, String)>> = HashMap::new();
    for (file, source) in files {
        let (file, source) = (file.as_ref(), source.as_ref());
        let own = home(file);
        let Some(layer) = layer(own) else {
            complaints.push(format!(
                "src/{file}: is in no layer; give it one in {}",
                file!()
            ));
            continue;
        };
        for (line, path) in imports(file, source) {
            let place = format!("src/{file}:{line}");
            let written = path.join("::");
            // Of itself, `lib.rs` may name what it likes.
            let Some(target) = path.first().filter(|name| homes.contains(name.as_str())) else {
                if own != "lib" {
                    complaints.push(format!(
                        "{place}: `crate::{written}` goes through lib.rs; import it from its home"
                    ));
                }
                continue;
            };
            // What is in no layer is complained of above.
            let above = self::layer(target).unwrap_or(layer);
            if above > layer {
                complaints.push(format!(
                    "{place}: `crate::{written}` is of layer {}, and {own} is of layer {}: \
                     imports go down, or stay in their layer",
                    above + 1,
                    layer + 1,
                ));
            } else if above == layer && target != own {
                beside.entry(own).or_default().push((target.clone(), place));
            }
        }
    }
    for (own, targets) in &beside {
        for (target, place) in targets {
            if reaches(&beside, target, own, &mut HashSet::new()) {
                complaints.push(format!(
                    "{place}: {own} imports {target}, from where a circle leads back to {own}"
                ));
            }
        }
    }
    complaints.sort();
    complaints.dedup();
    complaints
}

/// The file or folder of `src/` that a path leads to.
fn home(file: &str) -> &str {
    let (first, _) = file.split_once('/').unwrap_or((file, ""));
    first.trim_end_matches(".rs")
}

fn layer(home: &str) -> Option<usize> {
    LAYERS.iter().position(|names| names.contains(&home))
}

fn reaches(
    beside: &HashMap<&str, Vec<(String, String)>>,
    from: &str,
    to: &str,
    seen: &mut HashSet<String>,
) -> bool {
    from == to
        || seen.insert(from.to_owned())
            && beside.get(from).is_some_and(|targets| {
                let mut targets = targets.iter();
                targets.any(|(next, _)| reaches(beside, next, to, seen))
            })
}

/// Every path of a file that begins with `crate`, `self` or `super`, in a `use` or anywhere else:
/// the line of its last name, and the names from the root of the crate.
fn imports(file: &str, source: &str) -> Vec<(usize, Vec<String>)> {
    let module = file.trim_end_matches(".rs").split('/');
    let module = module.filter(|name| !matches!(*name, "mod" | "lib"));
    let mut module: Vec<_> = module.map(str::to_owned).collect();
    // How deep the braces were where each module inside of the file was opened.
    let mut inner = Vec::new();
    let mut depth = 0;
    let tokens = tokens(source);
    let text = |at: usize| tokens.get(at).map_or("", |token| token.1);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match text(at) {
            "mod" if text(at + 2) == "{" => {
                module.push(text(at + 1).to_owned());
                inner.push(depth);
                at += 1;
            }
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if inner.last() == Some(&depth) {
                    inner.pop();
                    module.pop();
                }
            }
            "crate" | "self" | "super"
                if text(at + 1) == "::" && (at == 0 || text(at - 1) != "::") =>
            {
                let mut paths = Vec::new();
                at = tree(&tokens, at, &[], &mut paths);
                for (line, path) in paths {
                    let mut whole = module.clone();
                    let mut names = path.into_iter().peekable();
                    if names.next_if(|name| name == "crate").is_some() {
                        whole.clear();
                    }
                    while let Some(name) = names.next_if(|name| name == "super" || name == "self") {
                        if name == "super" {
                            whole.pop();
                        }
                    }
                    whole.extend(names);
                    found.push((line, whole));
                }
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Reads a path, and the braces that it may end in, from `at` on; tells where it ended.
fn tree(
    tokens: &[(usize, &str)],
    mut at: usize,
    prefix: &[String],
    paths: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.1);
    let mut path = prefix.to_vec();
    loop {
        if text(at) == "{" {
            while !matches!(text(at), "}" | "") {
                // Behind the brace, or the comma.
                at += 1;
                if text(at) != "}" {
                    at = tree(tokens, at, &path, paths);
                }
                while !matches!(text(at), "," | "}" | "") {
                    at += 1; // `as name`
                }
            }
            return at + 1;
        }
        // In braces, `self` is what is before them.
        if text(at) != "self" || path.is_empty() {
            path.push(text(at).to_owned());
        }
        let goes_on = text(at + 1) == "::" && (text(at + 2) == "{" || is_name(text(at + 2)));
        if !goes_on {
            paths.push((tokens[at].0, path));
            return at + 1;
        }
        at += 2;
    }
}

fn is_name(token: &str) -> bool {
    token == "*" || token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Names, `::` and single characters, with their lines: no comments, strings or characters in quotes.
fn tokens(source: &str) -> Vec<(usize, &str)> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let name = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        let (length, is_code) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), false)
        } else if rest.starts_with("/*") {
            (comment(rest), false)
        } else if let Some(length) = quoted(rest) {
            (length, false)
        } else if name > 0 {
            (name, true)
        } else if rest.starts_with("::") {
            (2, true)
        } else {
            (first.len_utf8(), !first.is_whitespace())
        };
        let (token, after) = rest.split_at(length);
        if is_code {
            tokens.push((line, token));
        }
        line += token.matches('\n').count();
        rest = after;
    }
    tokens
}

/// The length of a comment, which may have others in it.
fn comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    loop {
        let rest = &text.as_bytes()[at..];
        match rest.get(..2) {
            Some(b"/*") => depth += 1,
            Some(b"*/") if depth == 1 => return at + 2,
            Some(b"*/") => depth -= 1,
            Some(_) => {
                at += 1;
                continue;
            }
            None => return text.len(),
        }
        at += 2;
    }
}

/// The length of a string or a character, if this is one and no lifetime.
fn quoted(text: &str) -> Option<usize> {
    let body = text.trim_start_matches(['b', 'c', 'r']);
    let prefix = text.len() - body.len();
    if text[..prefix].ends_with('r') {
        let content = body.trim_start_matches('#');
        let hashes = &body[..body.len() - content.len()];
        let end = format!("\"{hashes}");
        let length = content.strip_prefix('"')?.find(&end)?;
        return Some(prefix + hashes.len() + 1 + length + end.len());
    }
    let quote = body
        .chars()
        .next()
        .filter(|first| matches!(first, '"' | '\''))?;
    let escaped = body[1..].starts_with('\\');
    let mut chars = body.char_indices().skip(1);
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' => drop(chars.next()),
            char if char == quote => return Some(prefix + at + 1),
            // What does not end behind its first character is a lifetime.
            _ if quote == '\'' && !escaped && !body[at + char.len_utf8()..].starts_with(quote) => {
                return None;
            }
            _ => {}
        }
    }
    None
}

#[test]
fn what_goes_down_or_stays_in_its_folder_is_fine() {
    let shared = r##"
        //! Not code: crate::drain.
        use std::io;

        use super::registry::Registry;
        use crate::listener::{self, set::{ListenerSet, *}};
        pub(in crate::shared) use crate::sync as locks;

        /* use crate::drain::run; /* nor this */ use crate::drain::run; */
        fn f<'a>(x: &'a str) -> char {
            log(b"crate::drain\"::run", r#"" crate::drain::run"#, '\'', '"', '\u{22}');
            crate::socket::f::<crate::address::Address>(x, self.y, Self::Z)
        }

        mod tests {
            use super::*;
            use super::super::id_map::IdMap;
        }
        use super::cold::Cold;
    "##;
    let files = [
        ("address.rs", "use super::config::DEFAULT;"),
        ("config.rs", ""),
        ("drain/mod.rs", ""),
        (
            "lib.rs",
            "mod drain; pub use drain::Drain; use crate::{Drain, drain::run};",
        ),
        ("listener/mod.rs", "use crate::socket::Socket;"),
        ("shared/connection.rs", shared),
        ("shared/mod.rs", "use self::connection::Connection;"),
        ("socket/mod.rs", ""),
        ("sync.rs", ""),
    ];
    assert_eq!(complaints(&files), [""; 0]);
}

#[test]
fn what_goes_up_is_found_wherever_it_is_written() {
    let sources = [
        ("use crate::drain::run;", 1),
        ("\nuse super::super::drain::{run};", 2),
        (
            "use crate::{\n    address::Address,\n    drain::{\n        abort,\n    },\n};",
            4,
        ),
        ("use {std::io, crate::drain as d};", 1),
        (
            "/// A string: \"\nfn f() {\n    let x = [\"\\\n\", '{'];\n    crate::drain::run(x)\n}",
            5,
        ),
        ("mod tests {\n    use super::super::super::drain::*;\n}", 2),
        ("mod tests {}\nuse super::super::drain::run;", 2),
        ("fn f(x: Vec<crate::address::A<crate::drain::B>>) {}", 1),
        ("macro_rules! m { () => { $crate::drain::run() } }", 1),
    ];
    for (source, line) in sources {
        let files = [
            ("address.rs", ""),
            ("drain/mod.rs", ""),
            ("socket/readiness.rs", source),
        ];
        let complaints = complaints(&files);
        let start = format!("src/socket/readiness.rs:{line}: `crate::drain");
        assert!(
            complaints.len() == 1 && complaints[0].starts_with(&start),
            "{source}\n{complaints:?}"
        );
        assert!(complaints[0].contains("layer 10, and socket is of layer 2"));
    }
}

#[test]
fn what_is_nowhere_at_home_is_found() {
    let files = [
        ("lib.rs", ""),
        ("misc.rs", ""),
        (
            "server.rs",
            "use crate::misc::odds;\nuse super::Handle;\nuse crate::{self, *};",
        ),
    ];
    let complaints = complaints(&files);
    let starts = [
        "src/misc.rs: is in no layer",
        "src/server.rs:2: `crate::Handle` goes through lib.rs",
        "src/server.rs:3: `crate::*` goes through lib.rs",
        "src/server.rs:3: `crate::` goes through lib.rs",
    ];
    assert_eq!(complaints.len(), starts.len(), "{complaints:?}");
    for (complaint, start) in complaints.iter().zip(starts) {
        assert!(complaint.starts_with(start), "{complaint}");
    }
}

#[test]
fn a_circle_in_a_layer_is_found() {
    let files = [
        ("builder.rs", "use crate::server::Server;"),
        ("handle.rs", "use crate::builder::Builder;"),
        ("progress.rs", "use crate::handle::Handle;"),
        ("server.rs", "\nuse crate::handle::Handle;"),
    ];
    let complaints = complaints(&files);
    assert_eq!(complaints.len(), 3, "{complaints:?}");
    assert!(complaints[2].starts_with("src/server.rs:2: server imports handle, from where"));
}
