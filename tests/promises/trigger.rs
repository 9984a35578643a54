//! The socket at which a handover is asked for: who may ask, and that it is there all the time.

use std::fs::{Permissions, set_permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use gracious::{Builder, Handover};
use rustix::process::{Gid, Uid, geteuid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::support::TestRuntime;
use crate::support::client::{Client, HOUR, PATIENCE, echo, eventually, rounds, unix_path};
use crate::support::peer::settled;

crate::on_every_runtime!(
    it_can_be_asked_at_every_moment_of_a_handover,
    at_another_path_it_is_the_successors_own,
    a_successor_without_one_has_it_removed,
    another_user_is_refused,
);

fn server(runtime: &TestRuntime) -> Builder<TestRuntime> {
    let server = crate::support::server(runtime.clone()).deadline(HOUR);
    server.listen_named("it", "127.0.0.1:0")
}

fn at(trigger: &Path, runtime: &TestRuntime) -> Builder<TestRuntime> {
    server(runtime).hand_over_at(trigger, || Command::new("false"))
}

/// What is answered to an order there is not.
fn ask(trigger: &Path) -> std::io::Result<String> {
    let mut operator = UnixStream::connect(trigger)?;
    operator.set_read_timeout(Some(PATIENCE))?;
    operator.write_all(b"please\n")?;
    let mut answer = String::new();
    operator.read_to_string(&mut answer)?;
    Ok(answer)
}

const UNKNOWN: &str = "expected a line: upgrade\n";

async fn it_can_be_asked_at_every_moment_of_a_handover(runtime: TestRuntime) {
    let trigger = unix_path();
    let mut old = at(&trigger, &runtime).bind().await.unwrap().spawn(echo);
    let is_over = Arc::new(AtomicBool::new(false));
    let asking = {
        let (trigger, is_over) = (trigger.clone(), is_over.clone());
        thread::spawn(move || {
            let mut asked = 0;
            while !is_over.load(SeqCst) {
                assert_eq!(ask(&trigger).unwrap(), UNKNOWN);
                asked += 1;
            }
            asked
        })
    };
    for _ in 0..rounds(20) {
        let handover = Handover::take(&trigger).await.unwrap();
        assert!(handover.has_predecessor());
        let new = at(&trigger, &runtime).handover(&handover);
        let new = new.bind().await.unwrap().spawn(echo);
        handover.ready().await.unwrap();
        settled(old.await);
        old = new;
    }
    is_over.store(true, SeqCst);
    assert!(asking.join().unwrap() > 0);
    assert_eq!(Client::of(&old).ask("hello"), "hello");
    settled(old.shutdown().await);
    eventually("the path is removed", || !trigger.exists());
}

async fn at_another_path_it_is_the_successors_own(runtime: TestRuntime) {
    let (trigger, other) = (unix_path(), unix_path());
    let old = at(&trigger, &runtime).bind().await.unwrap().spawn(echo);
    let handover = Handover::take(&trigger).await.unwrap();
    let new = at(&other, &runtime).handover(&handover);
    let new = new.bind().await.unwrap().spawn(echo);
    assert_eq!(ask(&trigger).unwrap(), UNKNOWN);
    handover.ready().await.unwrap();
    settled(old.await);
    assert!(!trigger.exists());
    eventually("it is there", || ask(&other).is_ok_and(|it| it == UNKNOWN));
    settled(new.shutdown().await);
    eventually("the path is removed", || !other.exists());
}

async fn a_successor_without_one_has_it_removed(runtime: TestRuntime) {
    let trigger = unix_path();
    let old = at(&trigger, &runtime).bind().await.unwrap().spawn(echo);
    let handover = Handover::take(&trigger).await.unwrap();
    assert_eq!(handover.names(), ["it"]);
    let new = server(&runtime).handover(&handover);
    let new = new.bind().await.unwrap().spawn(echo);
    handover.ready().await.unwrap();
    settled(old.await);
    assert!(!trigger.exists());
    assert_eq!(Client::of(&new).ask("hello"), "hello");
    settled(new.shutdown().await);
}

/// Its mode keeps others out; whoever gets past that is known by the user. It takes root to be another.
async fn another_user_is_refused(runtime: TestRuntime) {
    if !geteuid().is_root() {
        return;
    }
    let trigger = unix_path();
    let old = at(&trigger, &runtime).bind().await.unwrap().spawn(echo);
    let asked = as_nobody(&trigger).unwrap_err();
    assert_eq!(asked.kind(), std::io::ErrorKind::PermissionDenied);

    set_permissions(&trigger, Permissions::from_mode(0o666)).unwrap();
    match as_nobody(&trigger) {
        Ok(answer) => assert_eq!(answer, ""),
        // What was asked is not read.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    assert_eq!(ask(&trigger).unwrap(), UNKNOWN);
    assert_eq!(Client::of(&old).ask("hello"), "hello");
    settled(old.shutdown().await);
}

/// Asks as the user 65534.
fn as_nobody(trigger: &Path) -> std::io::Result<String> {
    let ask = || {
        // Of this thread alone, which ends with it.
        let (user, group) = (Uid::from_raw(65534), Gid::from_raw(65534));
        set_thread_groups(&[]).unwrap();
        set_thread_res_gid(group, group, group).unwrap();
        set_thread_res_uid(user, user, user).unwrap();
        ask(trigger)
    };
    thread::scope(|scope| scope.spawn(ask).join().unwrap())
}
