//! The example `upgrade`, replaced by one signal again and again under load: nobody is refused, reset or
//! cut short.
//!
//! ```sh
//! cargo test --all-features --test upgrade
//! UPGRADE_REQUESTS=1000000 cargo test --all-features --release --test upgrade -- --ignored --nocapture
//! ```
#![cfg(target_os = "linux")]

#[path = "support/program.rs"]
mod program;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

use program::{PATIENCE, Program, eventually};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn a_program_is_replaced_by_one_signal_under_load() {
    replace(5, 500);
}

/// The figure of the documentation; a million with `UPGRADE_REQUESTS`.
#[test]
#[ignore = "takes a minute"]
fn a_hundred_thousand_requests_go_through_one_upgrade_after_the_other() {
    let requests = std::env::var("UPGRADE_REQUESTS").map_or(100_000, |it| it.parse().unwrap());
    replace(requests / 5_000, requests);
}

/// Replaces the program so many times at least, while so many requests at least are answered.
fn replace(upgrades: u64, requests: u64) {
    let path = std::env::temp_dir().join(format!("gracious-upgrade-{}", std::process::id()));
    let unix = format!("unix:{}", path.display());
    let first = Program::example("upgrade", &["127.0.0.1:0", &unix]);
    let mut serving = Said::of(&first);
    let served = Arc::new(AtomicU64::new(0));
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|number| {
            let (served, is_over) = (served.clone(), is_over.clone());
            let (tcp, path) = (serving.tcp.clone(), path.clone());
            thread::spawn(move || {
                while !is_over.load(SeqCst) {
                    match number % 2 {
                        0 => visit(TcpStream::connect(&tcp).unwrap()),
                        _ => visit(UnixStream::connect(&path).unwrap()),
                    }
                    served.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    let mut done = 0;
    while done < upgrades || served.load(SeqCst) < requests {
        let before = served.load(SeqCst);
        eventually("it is served", || {
            (served.load(SeqCst) > before + 20).then_some(())
        });
        kill_process(serving.process, Signal::HUP).unwrap();
        let successor = Said::of(&first);
        assert_ne!(successor.process, serving.process);
        assert_eq!(successor.tcp, serving.tcp);
        serving = successor;
        done += 1;
    }
    is_over.store(true, SeqCst);
    clients.into_iter().for_each(|it| it.join().unwrap());
    kill_process(serving.process, Signal::TERM).unwrap();
    // What the processes print comes to one pipe: it ends with the last of them.
    let ended = first.end();
    ended.assert(0);
    assert_eq!(ended.err, "");
    assert!(!path.exists());
    println!(
        "{} requests through {done} upgrades: all answered",
        served.load(SeqCst)
    );
}

/// What a process says when it serves.
struct Said {
    process: Pid,
    tcp: String,
}

impl Said {
    fn of(program: &Program) -> Self {
        let line = program.line();
        let (process, addresses) = line.split_once(": serving on ").unwrap();
        let process = Pid::from_raw(process.parse().unwrap()).unwrap();
        let tcp = addresses.split(", ").next().unwrap().to_owned();
        Self { process, tcp }
    }
}

trait Socket: Read + Write {
    fn prepare(&self);
    fn finish(&self);
}

impl Socket for TcpStream {
    fn prepare(&self) {
        self.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    fn finish(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

impl Socket for UnixStream {
    fn prepare(&self) {
        self.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    fn finish(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

/// Asks, reads the answer, and reads to the clean end.
fn visit(mut client: impl Socket) {
    client.prepare();
    client.write_all(b"hello\n").unwrap();
    let mut client = BufReader::new(client);
    let mut answer = String::new();
    client.read_line(&mut answer).unwrap();
    assert!(answer.ends_with(": hello\n"), "{answer:?}");
    client.get_mut().finish();
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}
