//! Programs that ask: curl, and HAProxy.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use futures_lite::{AsyncWriteExt, future};
use gracious::{AsyncStd, Connection, Running, Server};

use crate::support::client::{Client, HOUR, PATIENCE, echo, eventually, unix_path};
use crate::support::program::Program;
use crate::{asked, get, says};

#[test]
#[ignore = "needs curl"]
fn curl_is_told_by_status_and_text() {
    let server = Server::builder()
        .listen("127.0.0.1:0")
        .health("127.0.0.1:0");
    let server = future::block_on(server.lame_duck(HOUR).bind()).unwrap();
    let running = server.spawn(echo);
    let handle = running.handle();
    let health = asked(&handle);
    eventually("it is ready", || get(&health, "/ready") == says("ready"));
    let curl = |arguments: &[&str], path: &str| {
        let mut command = Command::new("curl");
        command
            .args(["-sS", "--max-time", "20", "-w", "%{http_code}\n"])
            .args(arguments);
        Program::start({
            command.arg(format!("http://{health}{path}"));
            command
        })
        .end()
    };
    assert_eq!(curl(&[], "/ready").assert(0).out, ["ready", "200"]);
    assert_eq!(
        curl(&["--http1.0"], "/live").assert(0).out,
        ["alive", "200"]
    );
    assert_eq!(
        curl(&["-I", "-o", "/dev/null"], "/ready").assert(0).out,
        ["200"]
    );
    handle.shutdown();
    assert_eq!(curl(&[], "/ready").assert(0).out, ["draining", "503"]);
    // As kubelet, and `curl -f` in a container's health check.
    assert_eq!(curl(&["-f"], "/ready").status, 22);
    assert_eq!(
        curl(&["-d", "x"], "/ready").assert(0).out,
        ["expected GET", "405"]
    );
    handle.abort();
    let _report = future::block_on(running);
}

/// Answers one line.
async fn reply(conn: Connection, answered: Arc<AtomicU64>) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    if let Some(line) = lines.next().await {
        writer.write_all(format!("{}\n", line?).as_bytes()).await?;
        answered.fetch_add(1, SeqCst);
    }
    Ok(())
}

fn ask_once(front: &Path, line: &str) -> io::Result<String> {
    let mut client = UnixStream::connect(front)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.write_all(line.as_bytes())?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(answer)
}

fn start(address: &str, health: &str) -> (Running, Arc<AtomicU64>) {
    let answered = Arc::new(AtomicU64::new(0));
    let count = answered.clone();
    let server: gracious::Builder<AsyncStd> = Server::builder().listen(address).health(health);
    // Three times as long as it takes HAProxy to ask.
    let server = server.lame_duck(Duration::from_millis(1500)).bind();
    let server = future::block_on(server).unwrap();
    (server.spawn(move |conn| reply(conn, count)), answered)
}

/// Without a retry and without a health check: nothing but the agent's word keeps HAProxy from sending a
/// client to a server whose door is shut.
#[test]
#[ignore = "needs haproxy"]
fn haproxy_sends_nobody_to_a_server_that_is_about_to_stop() {
    let mut servers = ["127.33.0.1:0", "127.33.0.2:0"].map(|address| start(address, address));
    let (front, control, config) = (unix_path(), unix_path(), unix_path());
    let health = |server: &(Running, Arc<AtomicU64>)| {
        let address = asked(&server.0.handle()).as_tcp().unwrap();
        format!(
            "agent-check agent-addr {} agent-port {}",
            address.ip(),
            address.port()
        )
    };
    let text = format!(
        "global\n stats socket {} mode 600 level admin\n\
         defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n \
         retries 0\n\
         frontend front\n bind unix@{}\n default_backend servers\n\
         backend servers\n balance roundrobin\n \
         server a {} {} agent-inter 200ms agent-send \"state\\n\"\n server b {} {} agent-inter 500ms\n",
        control.display(),
        front.display(),
        servers[0].0.handle().local_addrs()[0],
        health(&servers[0]),
        servers[1].0.handle().local_addrs()[0],
        health(&servers[1]),
    );
    fs::write(&config, text).unwrap();
    let mut command = Command::new("haproxy");
    command.args(["-db", "-f"]).arg(&config);
    let haproxy = Program::start(command);
    eventually("HAProxy listens", || UnixStream::connect(&front).is_ok());
    // What HAProxy says of each: `UP`, `DRAIN (agent)`.
    let state = |name: &str| {
        let mut client = Client::Unix(UnixStream::connect(&control).unwrap());
        client.send("show stat\n");
        let table = client.rest();
        let line = table
            .lines()
            .find(|line| line.starts_with(&format!("servers,{name},")));
        line.unwrap().split(',').nth(17).unwrap().to_owned()
    };

    let (stop, failed) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let clients: Vec<_> = (0..4)
        .map(|number| {
            let (front, stop, failed) = (front.clone(), stop.clone(), failed.clone());
            thread::spawn(move || {
                while !stop.load(SeqCst) {
                    let line = format!("client {number}\n");
                    if ask_once(&front, &line).ok().as_ref() != Some(&line) {
                        failed.fetch_add(1, SeqCst);
                    }
                    thread::sleep(Duration::from_millis(2));
                }
            })
        })
        .collect();
    for index in [0, 1, 0, 1] {
        let name = ["a", "b"][index];
        let before = servers[index].1.load(SeqCst);
        eventually("both serve", || {
            let is_up = |name| !state(name).starts_with('D');
            is_up("a") && is_up("b") && servers[index].1.load(SeqCst) > before + 10
        });
        let handle = servers[index].0.handle();
        let (address, health) = (&handle.local_addrs()[0], asked(&handle));
        handle.shutdown();
        eventually("it is drained", || state(name).starts_with("DRAIN"));
        assert!(
            TcpStream::connect(address.as_tcp().unwrap()).is_ok(),
            "the door is shut"
        );
        let report = future::block_on(handle.closed());
        assert!(report.is_clean(), "{report}");
        servers[index] = start(&address.to_string(), &health.to_string());
    }
    eventually("it is back", || !state("b").starts_with('D'));
    stop.store(true, SeqCst);
    for client in clients {
        client.join().unwrap();
    }
    assert_eq!(failed.load(SeqCst), 0);
    drop(haproxy);
    for (running, _) in servers {
        running.handle().abort();
        let _report = future::block_on(running);
    }
    for path in [front, control, config] {
        let _removed = fs::remove_file(path);
    }
}
