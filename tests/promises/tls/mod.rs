//! TLS (feature `tls`): every promise holds over it, the account counts it, and clients of another
//! making see clean ends. The client here is rustls', by hand: it can send half a record.

use std::io::{self, ErrorKind, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use gracious::rustls::client::WebPkiServerVerifier;
use gracious::rustls::crypto::ring::default_provider;
use gracious::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use gracious::rustls::version::{TLS12, TLS13};
use gracious::rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use gracious::{Builder, Running, Tls};
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, KeyPair};

use crate::support::TestRuntime;
use crate::support::client::{Client, unix_path};

mod configured;
mod handshakes;
#[cfg(feature = "proxy")]
mod proxied;
mod starttls;
mod stopped;
mod talking;
// The example among its tests stops on signals.
#[cfg(all(feature = "http", feature = "signals"))]
mod web;

/// Who has signed all certificates, made once a process.
fn authority() -> &'static (Certificate, KeyPair) {
    static AUTHORITY: OnceLock<(Certificate, KeyPair)> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params.self_signed(&key).unwrap(), key)
    })
}

/// A certificate and its key, made for a name.
struct Identity(Certificate, KeyPair);

fn identity(name: &str) -> Identity {
    let (authority, by) = authority();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([name.to_owned()]).unwrap();
    Identity(params.signed_by(&key, authority, by).unwrap(), key)
}

impl Identity {
    fn certificate(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.1.serialize_der()).unwrap()
    }

    /// Writes both to files of their own.
    fn to_files(&self) -> (PathBuf, PathBuf) {
        let (certificate, key) = (unix_path(), unix_path());
        std::fs::write(&certificate, self.0.pem()).unwrap();
        std::fs::write(&key, self.1.serialize_pem()).unwrap();
        (certificate, key)
    }

    fn config(&self) -> ServerConfig {
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth();
        config
            .with_single_cert(vec![self.certificate()], self.key())
            .unwrap()
    }
}

/// The TLS of a server that is called `localhost`.
fn localhost() -> Tls {
    static TLS: OnceLock<Tls> = OnceLock::new();
    TLS.get_or_init(|| identity("localhost").config().into())
        .clone()
}

/// A server with TLS on a free port, whose drain takes as long as it takes.
fn secured(runtime: TestRuntime) -> Builder<TestRuntime> {
    crate::support::server(runtime)
        .listen_tls("127.0.0.1:0", localhost())
        .deadline(None)
}

fn roots() -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(authority().0.der().clone()).unwrap();
    Arc::new(roots)
}

/// A client's configuration, of one version or of both, with a certificate or without.
fn client_config(only: Option<bool>, identity: Option<&Identity>) -> ClientConfig {
    let versions = match only {
        Some(true) => &[&TLS13][..],
        Some(false) => &[&TLS12],
        None => &[&TLS13, &TLS12],
    };
    let provider = Arc::new(default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(), provider.clone());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_webpki_verifier(verifier.build().unwrap());
    match identity {
        None => config.with_no_client_auth(),
        Some(it) => config
            .with_client_auth_cert(vec![it.certificate()], it.key())
            .unwrap(),
    }
}

/// A client that speaks TLS.
struct Secure {
    tls: ClientConnection,
    socket: Client,
}

impl Secure {
    /// Before the handshake.
    fn over(socket: Client, name: &str, config: ClientConfig) -> Self {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let tls = ClientConnection::new(Arc::new(config), name).unwrap();
        Self { tls, socket }
    }

    /// Before the handshake.
    #[track_caller]
    fn begun(running: &Running) -> Self {
        Self::over(Client::of(running), "localhost", client_config(None, None))
    }

    /// After the handshake.
    #[track_caller]
    fn of(running: &Running) -> Self {
        let mut client = Self::begun(running);
        client.shake().unwrap();
        client
    }

    /// Goes through the handshake.
    fn shake(&mut self) -> io::Result<()> {
        while self.tls.is_handshaking() {
            if let Err(error) = self.tls.complete_io(&mut self.socket) {
                // It has the alert still to send, maybe to nobody.
                let bytes = self.encrypt("");
                let _gone = self.socket.write_all(&bytes);
                return Err(error);
            }
        }
        Ok(())
    }

    /// What is to be sent for this text, not sent yet.
    fn encrypt(&mut self, text: &str) -> Vec<u8> {
        self.tls.writer().write_all(text.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    #[track_caller]
    fn send(&mut self, text: &str) {
        let bytes = self.encrypt(text);
        self.socket.write_all(&bytes).unwrap();
    }

    /// Sends the end of TLS.
    fn finish(&mut self) {
        self.tls.send_close_notify();
        let bytes = self.encrypt("");
        self.socket.write_all(&bytes).unwrap();
    }

    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            assert_eq!(self.read(&mut byte).unwrap(), 1, "an end after {line:?}");
            if byte == *b"\n" {
                return String::from_utf8(line).unwrap();
            }
            line.push(byte[0]);
        }
    }

    #[track_caller]
    fn ask(&mut self, line: &str) -> String {
        self.send(&format!("{line}\n"));
        self.line()
    }

    /// Everything up to a clean end: that of TLS, and then that of the socket.
    #[track_caller]
    fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        if let Err(error) = self.read_to_end(&mut rest) {
            let read = String::from_utf8_lossy(&rest);
            panic!("{error} in place of an end, after {read:?}");
        }
        assert_eq!(self.socket.rest(), "");
        String::from_utf8(rest).unwrap()
    }
}

/// An end without that of TLS is an `UnexpectedEof`.
impl Read for Secure {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(buf) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            self.tls.read_tls(&mut self.socket)?;
            self.tls.process_new_packets().map_err(io::Error::other)?;
        }
    }
}
