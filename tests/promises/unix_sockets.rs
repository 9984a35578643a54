//! Unix sockets: a path belongs to the server that made it, is there as long as that server
//! listens, and is made in place of one behind which no process listens any more.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;

use futures_lite::{AsyncWriteExt, future};
use gracious::{Address, Builder};

use crate::support::client::{Client, echo, handing_over, refuses, rounds, taken_in, unix_path};
use crate::support::peer::{Process, orders, passes, settled, tell};
use crate::support::{Engine, TestRuntime};

crate::on_every_runtime!(
    a_path_is_there_while_the_server_is,
    a_path_that_is_gone_already_is_no_error,
    a_path_that_is_somebody_elses_by_now_stays,
    a_path_is_removed_by_whatever_ends_the_server,
    a_path_that_nobody_answers_behind_is_replaced,
    a_path_that_somebody_answers_behind_is_not,
    a_path_behind_a_full_queue_is_not_replaced,
    a_file_that_is_no_socket_is_left_alone,
    a_link_to_nowhere_is_left_alone,
    a_directory_that_is_not_there_is_named,
    a_path_too_long_is_an_error,
    its_mode_is_what_was_asked_for,
    nobody_gets_in_before_the_mode_is_set,
    its_owner_can_be_asked_for,
    a_successor_on_the_same_path_keeps_it,
    many_servers_after_each_other_lose_no_path,
    of_servers_that_bind_a_path_at_once_one_gets_it,
    a_connection_goes_on_after_its_path_is_gone,
    odd_names_are_as_good_as_any,
    #[cfg(target_os = "linux")]
    an_abstract_name_leaves_no_file,
    #[cfg(target_os = "linux")]
    an_abstract_name_in_use_is_named
);
crate::on_every_runtime_in_a_process!(
    a_relative_path_is_meant_as_it_was_at_bind: moves_away, passes;
    a_path_left_behind_by_a_kill_is_replaced: is_killed, binds_where_another_was_killed;
);

fn on(runtime: &TestRuntime, path: &Path) -> Builder<TestRuntime> {
    crate::support::server(runtime.clone()).listen(Address::Unix(path.to_owned()))
}

#[track_caller]
fn is_socket(path: &Path) {
    let found = fs::symlink_metadata(path).unwrap();
    assert!(found.file_type().is_socket());
}

async fn a_path_is_there_while_the_server_is(runtime: TestRuntime) {
    let path = unix_path();
    let server = on(&runtime, &path).bind().await.unwrap();
    let address = server.local_addrs()[0].clone();
    assert_eq!(address, Address::Unix(path.clone()));
    is_socket(&path);
    let running = server.spawn(echo);
    assert_eq!(Client::of(&running).ask("hello"), "hello");
    running.handle().shutdown();
    settled(running.await);
    assert!(!path.exists());
    assert!(refuses(&address));
}

async fn a_path_that_is_gone_already_is_no_error(runtime: TestRuntime) {
    let path = unix_path();
    let running = on(&runtime, &path).bind().await.unwrap().spawn(echo);
    let mut client = Client::of(&running);
    fs::remove_file(&path).unwrap();
    assert_eq!(client.ask("hello"), "hello");
    running.handle().shutdown();
    assert_eq!(settled(running.await).completed, 1);
}

async fn a_path_that_is_somebody_elses_by_now_stays(runtime: TestRuntime) {
    // A file, and a socket, which is told from ours by its inode alone.
    let path = unix_path();
    let running = on(&runtime, &path).bind().await.unwrap().spawn(echo);
    fs::rename(&path, path.with_extension("away")).unwrap();
    fs::write(&path, "mine").unwrap();
    running.handle().shutdown();
    settled(running.await);
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    fs::remove_file(&path).unwrap();

    let running = on(&runtime, &path).bind().await.unwrap().spawn(echo);
    fs::rename(&path, path.with_extension("away")).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    running.handle().shutdown();
    settled(running.await);
    is_socket(&path);
    drop(UnixStream::connect(&path).unwrap());
    drop(other.accept().unwrap());
    fs::remove_file(&path).unwrap();
    fs::remove_file(path.with_extension("away")).unwrap();
}

async fn a_path_is_removed_by_whatever_ends_the_server(runtime: TestRuntime) {
    let path = unix_path();
    drop(on(&runtime, &path).bind().await.unwrap());
    assert!(!path.exists());

    let server = on(&runtime, &path).bind().await.unwrap();
    let handle = server.handle();
    drop(server.spawn(echo));
    handle.closed().await;
    assert!(!path.exists());

    let running = on(&runtime, &path).bind().await.unwrap().spawn(echo);
    running.handle().abort();
    settled(running.await);
    assert!(!path.exists());
}

async fn a_path_that_nobody_answers_behind_is_replaced(runtime: TestRuntime) {
    let path = unix_path();
    // Its listener is closed, and std leaves the path.
    drop(UnixListener::bind(&path).unwrap());
    is_socket(&path);
    let running = on(&runtime, &path).bind().await.unwrap().spawn(echo);
    assert_eq!(Client::of(&running).ask("hello"), "hello");
    running.handle().shutdown();
    settled(running.await);
    assert!(!path.exists());
}

async fn a_path_that_somebody_answers_behind_is_not(runtime: TestRuntime) {
    let path = unix_path();
    let running = on(&runtime, &path).bind().await.unwrap().spawn(echo);
    let inode = fs::symlink_metadata(&path).unwrap().ino();
    let error = on(&runtime, &path).bind().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    let name = path.display().to_string();
    assert!(error.to_string().contains(&name), "{error}");
    assert_eq!(fs::symlink_metadata(&path).unwrap().ino(), inode);
    assert_eq!(Client::of(&running).ask("hello"), "hello");
    running.handle().shutdown();
    let report = settled(running.await);
    // A probe is a connection, too.
    assert_eq!(report.completed, report.accepted);
}

async fn a_path_behind_a_full_queue_is_not_replaced(runtime: TestRuntime) {
    let path = unix_path();
    let server = on(&runtime, &path).backlog(1).bind().await.unwrap();
    let address = socket2::SockAddr::unix(&path).unwrap();
    let mut queued = Vec::new();
    loop {
        let client = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
        let client = client.unwrap();
        client.set_nonblocking(true).unwrap();
        match client.connect(&address) {
            Ok(()) => queued.push(client),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error} instead of a full queue"),
        }
    }
    let error = on(&runtime, &path).bind().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    is_socket(&path);
    drop(server);
}

async fn a_file_that_is_no_socket_is_left_alone(runtime: TestRuntime) {
    let path = unix_path();
    fs::write(&path, "precious").unwrap();
    let error = on(&runtime, &path).bind().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    let name = path.display().to_string();
    assert!(error.to_string().contains(&name), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(path).unwrap();
}

async fn a_link_to_nowhere_is_left_alone(runtime: TestRuntime) {
    let path = unix_path();
    std::os::unix::fs::symlink("/nowhere/at/all", &path).unwrap();
    let error = on(&runtime, &path).bind().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
    fs::remove_file(path).unwrap();
}

async fn a_directory_that_is_not_there_is_named(runtime: TestRuntime) {
    let error = on(&runtime, Path::new("/nowhere/at/all")).bind().await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error.to_string().contains("unix:/nowhere/at/all"),
        "{error}"
    );
}

async fn a_path_too_long_is_an_error(runtime: TestRuntime) {
    let path = std::env::temp_dir().join("x".repeat(150));
    let error = on(&runtime, &path).bind().await.unwrap_err();
    assert!(error.to_string().contains("xxx"), "{error}");
    assert!(!path.exists());
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

async fn its_mode_is_what_was_asked_for(runtime: TestRuntime) {
    for wanted in [0o600, 0o660, 0o666, 0o777, 0o000] {
        let path = unix_path();
        let server = on(&runtime, &path).unix_mode(wanted).bind().await.unwrap();
        assert_eq!(mode(&path), wanted);
        drop(server);
        assert!(!path.exists());
    }
}

async fn nobody_gets_in_before_the_mode_is_set(runtime: TestRuntime) {
    let directory = unix_path();
    fs::create_dir(&directory).unwrap();
    let round = Arc::new(AtomicUsize::new(0));
    // Connects as soon as it can, and looks at the mode when it could.
    let intruder = {
        let (directory, round) = (directory.clone(), round.clone());
        thread::spawn(move || {
            loop {
                let path = match round.load(SeqCst) {
                    50 => return,
                    round => directory.join(round.to_string()),
                };
                if UnixStream::connect(&path).is_ok() {
                    // The server may be gone again.
                    if let Ok(found) = fs::symlink_metadata(&path) {
                        assert_eq!(found.permissions().mode() & 0o777, 0o600);
                    }
                }
            }
        })
    };
    for _ in 0..50 {
        let path = directory.join(round.load(SeqCst).to_string());
        let server = on(&runtime, &path).unix_mode(0o600).bind().await.unwrap();
        let running = server.spawn(echo);
        taken_in(&running.handle(), 1);
        running.handle().shutdown();
        settled(running.await);
        round.fetch_add(1, SeqCst);
    }
    intruder.join().unwrap();
    fs::remove_dir(directory).unwrap();
}

async fn its_owner_can_be_asked_for(runtime: TestRuntime) {
    let path = unix_path();
    // Its own user and group, which needs no rights.
    let own = fs::metadata("/proc/self").map(|found| (found.uid(), found.gid()));
    let Ok((user, group)) = own else {
        return;
    };
    let server = on(&runtime, &path)
        .unix_owner(user, group)
        .bind()
        .await
        .unwrap();
    let found = fs::symlink_metadata(&path).unwrap();
    assert_eq!((found.uid(), found.gid()), (user, group));
    drop(server);
    if user == 0 {
        let server = on(&runtime, &path)
            .unix_owner(None, 12345)
            .bind()
            .await
            .unwrap();
        let found = fs::symlink_metadata(&path).unwrap();
        assert_eq!((found.uid(), found.gid()), (0, 12345));
        drop(server);
    } else {
        // What cannot be had leaves nothing behind.
        let error = on(&runtime, &path)
            .unix_owner(0, None)
            .bind()
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }
    assert!(!path.exists());
}

async fn a_successor_on_the_same_path_keeps_it(runtime: TestRuntime) {
    let path = unix_path();
    let (running, connections) = handing_over(on(&runtime, &path).bind().await.unwrap());
    let mut old = Client::of(&running);
    let mut conn = connections.recv().await.unwrap();
    running.handle().shutdown();
    conn.shutdown_requested().await;
    // The path is gone before any connection is asked to end, so it can be bound.
    let successor = on(&runtime, &path).bind().await.unwrap().spawn(echo);
    conn.write_all(b"old\n").await.unwrap();
    drop(conn);
    assert_eq!(old.rest(), "old\n");
    settled(running.await);
    assert_eq!(Client::of(&successor).ask("new"), "new");
    successor.handle().shutdown();
    settled(successor.await);
    assert!(!path.exists());
}

async fn many_servers_after_each_other_lose_no_path(runtime: TestRuntime) {
    let path = unix_path();
    let mut running = on(&runtime, &path).bind().await.unwrap().spawn(echo);
    for _ in 0..200 {
        running.handle().shutdown();
        // While the one before still stops. An inode that is freed is used again at once.
        let next = loop {
            match on(&runtime, &path).bind().await {
                Ok(server) => break server.spawn(echo),
                Err(error) => assert_eq!(error.kind(), ErrorKind::AddrInUse),
            }
        };
        settled(std::mem::replace(&mut running, next).await);
        assert_eq!(Client::of(&running).ask("hello"), "hello");
    }
    running.handle().shutdown();
    settled(running.await);
}

/// A path is nobody's to replace while its server does not listen on it yet.
async fn of_servers_that_bind_a_path_at_once_one_gets_it(runtime: TestRuntime) {
    for _ in 0..rounds(20) {
        let path = unix_path();
        let start = Arc::new(Barrier::new(4));
        let threads = [(); 4].map(|()| {
            let (start, builder) = (start.clone(), on(&runtime, &path));
            thread::spawn(move || {
                start.wait();
                future::block_on(builder.bind())
            })
        });
        let bound = threads.map(|thread| thread.join().unwrap());
        let mut servers = Vec::new();
        for bound in bound {
            match bound {
                Ok(server) => servers.push(server),
                Err(error) => assert_eq!(error.kind(), ErrorKind::AddrInUse, "{error}"),
            }
        }
        assert_eq!(servers.len(), 1);
        is_socket(&path);
    }
}

async fn a_connection_goes_on_after_its_path_is_gone(runtime: TestRuntime) {
    let path = unix_path();
    let (running, connections) = handing_over(on(&runtime, &path).bind().await.unwrap());
    let mut client = Client::of(&running);
    let mut conn = connections.recv().await.unwrap();
    running.handle().shutdown();
    conn.shutdown_requested().await;
    assert!(!path.exists());
    conn.write_all(b"still here\n").await.unwrap();
    assert_eq!(client.line(), "still here");
    drop(conn);
    assert_eq!(client.rest(), "");
    assert_eq!(settled(running.await).completed, 1);
}

async fn odd_names_are_as_good_as_any(runtime: TestRuntime) {
    for suffix in [
        &b" with a space"[..],
        b"%41",
        b"\xff\n",
        b"@",
        "ü".as_bytes(),
    ] {
        let mut name = unix_path().into_os_string().into_vec();
        name.extend(suffix);
        let path = std::path::PathBuf::from(OsString::from_vec(name));
        // As text, too, as in a file of settings.
        let text = Address::Unix(path.clone()).to_string();
        let server = crate::support::server(runtime.clone()).listen(text);
        let running = server.bind().await.unwrap().spawn(echo);
        is_socket(&path);
        assert_eq!(Client::of(&running).ask("hello"), "hello");
        running.handle().shutdown();
        settled(running.await);
        assert!(!path.exists());
    }
}

#[cfg(target_os = "linux")]
async fn an_abstract_name_leaves_no_file(runtime: TestRuntime) {
    let name = unix_path().display().to_string();
    let server = crate::support::server(runtime.clone()).listen(format!("unix:@{name}"));
    let server = server.bind().await.unwrap();
    assert_eq!(
        server.local_addrs(),
        [Address::Abstract(name.clone().into())]
    );
    assert!(!Path::new(&name).exists());
    let running = server.spawn(echo);
    let mut client = abstract_client(&name).unwrap();
    assert_eq!(client.ask("hello"), "hello");
    running.handle().shutdown();
    assert_eq!(client.rest(), "");
    settled(running.await);
    assert!(abstract_client(&name).is_err());
}

#[cfg(target_os = "linux")]
async fn an_abstract_name_in_use_is_named(runtime: TestRuntime) {
    let name = format!("unix:@{}", unix_path().display());
    let first = crate::support::server(runtime.clone()).listen(&name);
    let first = first.bind().await.unwrap();
    let second = crate::support::server(runtime).listen(&name);
    let error = second.bind().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&name), "{error}");
    drop(first);
}

#[cfg(target_os = "linux")]
fn abstract_client(name: &str) -> std::io::Result<Client> {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    UnixStream::connect_addr(&address).map(Client::Unix)
}

async fn moves_away(runtime: TestRuntime) {
    let directory = unix_path();
    fs::create_dir(&directory).unwrap();
    std::env::set_current_dir(&directory).unwrap();
    let server = crate::support::server(runtime).listen("unix:relative");
    let server = server.bind().await.unwrap();
    is_socket(&directory.join("relative"));
    let running = server.spawn(echo);
    std::env::set_current_dir("/").unwrap();
    let address = Address::Unix(directory.join("relative"));
    assert_eq!(Client::connect(&address).unwrap().ask("hello"), "hello");
    running.handle().shutdown();
    settled(running.await);
    assert!(!directory.join("relative").exists());
    fs::remove_dir(directory).unwrap();
}

async fn is_killed(runtime: TestRuntime) {
    let server = on(&runtime, &unix_path()).bind().await.unwrap();
    tell("address", &server.local_addrs()[0]);
    let _running = server.spawn(echo);
    orders().recv().await.unwrap();
}

fn binds_where_another_was_killed(mut process: Process) {
    let address = process.address();
    let mut client = Client::connect(&address).unwrap();
    assert_eq!(client.ask("hello"), "hello");
    process.kill();
    let path = address.as_path().unwrap().to_owned();
    is_socket(&path);
    async_io::block_on(async {
        let server = on(&TestRuntime::start(Engine::Executor), &path)
            .bind()
            .await
            .unwrap();
        let running = server.spawn(echo);
        assert_eq!(Client::of(&running).ask("hello"), "hello");
        running.handle().shutdown();
        settled(running.await);
    });
    assert!(!path.exists());
}
