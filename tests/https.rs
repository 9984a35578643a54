//! The example `https` and a server of lines, with the clients that people use, while they are stopped.
//!
//! `cargo test --all-features --test https -- --ignored`; each test names what it needs.
#![cfg(all(
    feature = "async-std",
    feature = "signals",
    feature = "http",
    feature = "tls"
))]

#[path = "support/program.rs"]
mod program;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use program::Program;

/// A certificate for `localhost`, and its key, in files of their own that go with it.
struct Files(PathBuf, PathBuf);

impl Files {
    fn make() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, SeqCst);
        let [certificate, key] = ["cert", "key"].map(|what| {
            let name = format!("gracious-{}-{number}-{what}.pem", std::process::id());
            std::env::temp_dir().join(name)
        });
        let files = Self(certificate, key);
        files.renew();
        files
    }

    /// Another certificate, in the same files.
    fn renew(&self) {
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30",
        ]);
        openssl.args([
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ]);
        openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        openssl.arg("-keyout").arg(&self.1).arg("-out").arg(&self.0);
        let ended = Program::start(openssl).end();
        assert_eq!(ended.status, 0, "{ended:?}");
    }

    fn certificate(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// Starts the example with these files on a free port; gives that.
    #[track_caller]
    fn serve(&self) -> (Program, String) {
        let key = self.1.to_str().unwrap();
        let https = Program::example("https", &[self.certificate(), key, "127.0.0.1:0"]);
        let address = https.addresses().remove(0);
        let (_, port) = address.rsplit_once(':').unwrap();
        (https, port.to_owned())
    }

    /// Starts curl, with more of a command line. What it says of itself comes with the answer.
    #[track_caller]
    fn curl(&self, port: &str, options: &str, path: &str) -> Program {
        let mut shell = Command::new("sh");
        let line = format!(
            "exec curl --silent --show-error --noproxy '*' --cacert {} {options} \
             https://localhost:{port}{path} 2>&1",
            self.certificate()
        );
        shell.args(["-c", &line]);
        Program::start(shell)
    }

    /// Starts `openssl s_client`, whose end does not come of its input's.
    #[track_caller]
    fn s_client(&self, port: &str, options: &[&str]) -> Program {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-ign_eof", "-verify_return_error", "-CAfile"]);
        openssl.arg(&self.0).args(["-servername", "localhost"]);
        openssl
            .args(options)
            .args(["-connect", &format!("127.0.0.1:{port}")]);
        Program::start(openssl)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in [&self.0, &self.1] {
            let _gone = fs::remove_file(path);
        }
    }
}

#[test]
#[ignore = "needs curl and openssl"]
fn curl_is_answered_in_the_version_it_prefers_and_through_a_stop() {
    let files = Files::make();
    let (https, port) = files.serve();
    for (options, version) in [
        ("--http2", "HTTP/2.0"),
        ("--http1.1", "HTTP/1.1"),
        ("--no-alpn", "HTTP/1.1"),
        ("--tls-max 1.2", "HTTP/2.0"),
    ] {
        let curl = files.curl(&port, options, "/").end();
        assert_eq!(curl.assert(0).out, [format!("hello over {version}")]);
    }
    let slow = ["--http2", "--http1.1"].map(|options| {
        let curl = files.curl(&port, &format!("--verbose {options}"), "/slow");
        // What curl has sent the server has to answer.
        while !curl.line().contains("> GET /slow") {}
        curl
    });
    https.kill("TERM");
    for curl in slow {
        let ended = curl.end();
        let answer = "better late than never";
        let is_answered = ended.out.iter().any(|line| line.contains(answer));
        assert!(ended.status == 0 && is_answered, "{ended:?}");
    }
    let ended = https.end();
    ended.assert(0);
    let account = ": 6 accepted, 6 completed; ";
    assert!(ended.last().contains(account), "{ended:?}");
}

#[test]
#[ignore = "needs openssl"]
fn s_client_sees_a_clean_end_when_it_is_idle_at_a_stop() {
    let files = Files::make();
    let (https, port) = files.serve();
    let mut clients = ["-tls1_2", "-tls1_3"].map(|version| {
        let mut client = files.s_client(&port, &["-quiet", version]);
        client.say("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        while client.line() != "hello over HTTP/1.1" {}
        client
    });
    // And one that has never said a word.
    let silent = files.s_client(&port, &["-alpn", "h2"]);
    while !silent.line().starts_with("SSL handshake has read") {}
    clients.iter_mut().for_each(|it| assert!(!it.has_ended()));
    https.kill("TERM");
    for client in clients.into_iter().chain([silent]) {
        // Its end comes of the server's, not of its input's.
        let ended = client.end_by_itself();
        let is_clean = ended.status == 0 && !ended.err.contains("error:");
        assert!(is_clean, "{ended:?}");
    }
    https.end().assert(0);
}

#[test]
#[ignore = "needs python3 and openssl"]
fn pythons_ssl_sees_no_truncation() {
    let files = Files::make();
    let (https, port) = files.serve();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign/secure.py");
    let address = format!("127.0.0.1:{port}");
    let python = |text: &str| {
        let mut command = Command::new("python3");
        command.args([script, &address, files.certificate(), text]);
        Program::start(command)
    };
    let idle = python(r"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    while idle.line() != "hello over HTTP/1.1" {}
    let slow = python(r"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(slow.line(), "connected TLSv1.3");
    https.kill("TERM");
    assert_eq!(idle.end().assert(0).out, ["the end"]);
    let slow = slow.end();
    assert_eq!(slow.assert(0).out.last().unwrap(), "the end");
    assert!(
        slow.out.contains(&"better late than never".to_owned()),
        "{slow:?}"
    );
    https.end().assert(0);
}

#[test]
#[ignore = "needs curl and openssl"]
fn another_certificate_is_used_from_a_reload_on() {
    let files = Files::make();
    let (https, port) = files.serve();
    let mut open = files.s_client(&port, &["-quiet"]);
    let ask = |client: &mut Program| {
        client.say("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        while client.line() != "hello over HTTP/1.1" {}
    };
    ask(&mut open);
    // The old certificate is asked for with itself, and then nobody trusts it any more.
    let old = fs::read(&files.0).unwrap();
    files.renew();
    let new = fs::read(&files.0).unwrap();
    assert_ne!(files.curl(&port, "", "/").end().status, 0);
    fs::write(&files.0, &old).unwrap();
    let failed = files.curl(&port, "", "/reload").end();
    assert!(
        failed.out[0].starts_with("the old certificate stays: "),
        "{failed:?}"
    );
    // Trusted by curl is the old one, read by the server the new one.
    let trusted = files.1.with_extension("old");
    fs::write(&trusted, &old).unwrap();
    fs::write(&files.0, &new).unwrap();
    let options = format!("--cacert {}", trusted.display());
    let reloaded = files.curl(&port, &options, "/reload").end();
    assert_eq!(reloaded.out, ["new clients get the new certificate"]);
    fs::remove_file(trusted).unwrap();
    let renewed = files.curl(&port, "", "/").end();
    assert_eq!(renewed.assert(0).out, ["hello over HTTP/2.0"]);
    ask(&mut open);
    https.kill("TERM");
    open.end_by_itself();
    https.end().assert(0);
}

#[test]
#[ignore = "needs openssl"]
fn files_that_are_missing_are_named() {
    let ended = Program::example("https", &["nowhere.pem", "key.pem", "127.0.0.1:0"]).end();
    assert_eq!(ended.status, 2, "{ended:?}");
    assert!(
        ended.err.starts_with("https: cannot read nowhere.pem: "),
        "{ended:?}"
    );
}
