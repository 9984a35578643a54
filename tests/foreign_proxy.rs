//! The real HAProxy, which tells a server who its clients are, by the PROXY protocol.
//!
//! `cargo test --all-features --test foreign_proxy -- --ignored`.
#![cfg(target_os = "linux")]

#[path = "support/program.rs"]
mod program;

use std::fs;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use async_std::task;
use futures_lite::AsyncWriteExt;
use gracious::rustls::ServerConfig;
use gracious::rustls::crypto::ring::default_provider;
use gracious::{Address, Connection, ProxyProtocol, Running, Server, Tls};

use program::{PATIENCE, Program, eventually};

#[track_caller]
fn wait<T>(future: impl Future<Output = T>) -> T {
    task::block_on(async_std::future::timeout(PATIENCE, future)).expect("did not end in time")
}

/// Says what is known of the client, then echoes lines.
async fn introduce(conn: Connection) -> io::Result<()> {
    let header = conn.proxy().expect("a header");
    let text = format!(
        "v{} from {} through {}, checksum {}, name {:?}, id {:?}, tls {}\n",
        header.version,
        conn.peer_addr(),
        match conn.socket_peer() {
            Address::Tcp(proxy) => proxy.ip().to_string(),
            other => other.to_string(),
        },
        header.extension(3).is_some(),
        header.authority(),
        header.unique_id().map(String::from_utf8_lossy),
        conn.tls().is_some(),
    );
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    // What a health check sends is a header and nothing else.
    while let Some(Ok(line)) = lines.next().await {
        let answer = if line == "who" {
            &text
        } else {
            &format!("{line}\n")
        };
        writer.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

fn tls() -> Tls {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = certified.key_pair.serialize_der().try_into().unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let chain = vec![certified.cert.der().clone()];
    let config = config.with_no_client_auth().with_single_cert(chain, key);
    config.unwrap().into()
}

/// A conversation with whatever is behind HAProxy.
trait Talk: Read + Write {
    fn ask(&mut self, line: &str) -> String {
        writeln!(self, "{line}").unwrap();
        let mut answer = Vec::new();
        loop {
            let mut byte = [0];
            assert_eq!(self.read(&mut byte).unwrap(), 1, "an end after {answer:?}");
            if byte == *b"\n" {
                return String::from_utf8(answer).unwrap();
            }
            answer.push(byte[0]);
        }
    }
}

impl<T: Read + Write> Talk for T {}

struct HaProxy {
    _program: Program,
    config: PathBuf,
    front: SocketAddr,
    unix: PathBuf,
}

impl HaProxy {
    /// Starts it before a server, with these options of the server's line.
    fn before(server: &Running, options: &str, number: u16) -> Self {
        let temporary = |name: &str| {
            let name = format!("gracious-{}-{number}-{name}", std::process::id());
            std::env::temp_dir().join(name)
        };
        let (config, unix) = (temporary("haproxy.cfg"), temporary("haproxy.sock"));
        // An address of this process's own: nobody else takes the port.
        let own = 0x7f31_0000 | (std::process::id() & 0xffff);
        let front = SocketAddr::from((Ipv4Addr::from(own), 7000 + number));
        let text = format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n \
             unique-id-format %pid-%rt\n\
             frontend front\n bind {front}\n bind unix@{}\n default_backend servers\n\
             backend servers\n server it {} check inter 20ms check-send-proxy {options}\n",
            unix.display(),
            server.handle().local_addrs()[0],
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&config);
        let program = Program::start(command);
        eventually("HAProxy listens", || TcpStream::connect(front).ok());
        Self {
            _program: program,
            config,
            front,
            unix,
        }
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        for path in [&self.config, &self.unix] {
            // It may not have come so far.
            let _gone = fs::remove_file(path);
        }
    }
}

#[test]
#[ignore = "needs haproxy"]
fn haproxy_tells_who_its_clients_are_in_either_version_and_before_tls() {
    let options = "proxy-v2-options crc32c,authority,unique-id";
    for (number, version, secure) in [(0, 1, false), (1, 2, false), (2, 1, true), (3, 2, true)] {
        let builder =
            Server::builder().proxy_protocol(ProxyProtocol::from_trusted(["127.0.0.0/8"]));
        let builder = match secure {
            true => builder.listen_tls("127.0.0.1:0", tls()),
            false => builder.listen("127.0.0.1:0"),
        };
        let running = wait(builder.bind()).unwrap().spawn(introduce);
        let mut line = match version {
            1 => "send-proxy".to_owned(),
            _ => format!("send-proxy-v2 {options}"),
        };
        if secure {
            line += " ssl verify none check-ssl sni str(localhost)";
        }
        let haproxy = HaProxy::before(&running, &line, number);

        let mut client = TcpStream::connect(haproxy.front).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let own = client.local_addr().unwrap();
        let said = client.ask("who");
        let start = format!("v{version} from {own} through 127.0.0.1, ");
        assert!(said.starts_with(&start), "{said}");
        assert!(
            said.contains(&format!("checksum {}, ", version == 2)),
            "{said}"
        );
        assert_eq!(said.contains("id Some("), version == 2, "{said}");
        assert!(said.ends_with(&format!("tls {secure}")), "{said}");
        let is_known = |it: &gracious::ConnectionInfo| it.peer == own.into();
        assert!(running.handle().connections().iter().any(is_known));

        // Of a client without an address it says nothing, and is the peer itself.
        let mut unnamed = UnixStream::connect(&haproxy.unix).unwrap();
        unnamed.set_read_timeout(Some(PATIENCE)).unwrap();
        let said = unnamed.ask("who");
        assert!(
            said.starts_with(&format!("v{version} from 127.0.0.1:")),
            "{said}"
        );

        // Health checks have come all the while.
        let handle = running.handle();
        eventually("health checks", || {
            (handle.stats().completed > 5).then_some(())
        });
        // A stop finds one connection idle and one inside a message.
        client.write_all(b"half").unwrap();
        eventually("half a line", || {
            let connections = handle.connections();
            connections
                .iter()
                .any(|it| it.peer == own.into() && it.busy)
                .then_some(())
        });
        handle.shutdown();
        let mut rest = String::new();
        unnamed.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        client.write_all(b" a line\n").unwrap();
        client.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "half a line\n");
        let report = wait(running).unwrap();
        assert_eq!(
            (report.aborted, report.failed_proxy_headers),
            (0, 0),
            "{report}"
        );
    }
}
