//! What TLS is configured with: files, and what is wrong with them; names, protocols, clients'
//! certificates; and another configuration while the server serves.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use gracious::rustls::ServerConfig;
use gracious::rustls::crypto::ring::{default_provider, sign};
use gracious::rustls::server::{ClientHello, ResolvesServerCert};
use gracious::rustls::sign::CertifiedKey;
use gracious::{Connection, Tls};

use super::{Identity, Secure, authority, client_config, identity, localhost};
use crate::support::TestRuntime;
use crate::support::client::{Client, echo, eventually, unix_path};
use crate::support::peer::settled;

crate::on_every_runtime!(
    a_protocol_is_agreed_on,
    a_name_chooses_the_certificate,
    clients_show_who_they_are,
    another_certificate_is_used_from_a_reload_on,
    a_resolver_that_panics_ends_one_connection,
);

/// The message of a configuration that must fail.
#[track_caller]
fn fails(certificates: &Path, key: &Path, kind: ErrorKind) -> String {
    let error = Tls::from_pem_files(certificates, key).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    let message = error.to_string();
    let named = |path: &Path| message.contains(path.to_str().unwrap());
    assert!(named(certificates) || named(key), "{message}");
    message
}

#[test]
fn files_that_are_wrong_are_named_with_what_is_in_them() {
    let (certificate, key) = identity("localhost").to_files();
    Tls::from_pem_files(&certificate, &key).unwrap();

    let nowhere = unix_path();
    let message = fails(&nowhere, &key, ErrorKind::NotFound);
    assert!(
        message.contains("expected a PEM file with the server's certificate"),
        "{message}"
    );
    let message = fails(&certificate, &nowhere, ErrorKind::NotFound);
    assert!(
        message.contains("expected a PEM file with the server's private key"),
        "{message}"
    );

    let message = fails(&key, &certificate, ErrorKind::InvalidData);
    assert!(message.ends_with("has PRIVATE KEY in it: expected the server's certificate in PEM"));
    let message = fails(&certificate, &certificate, ErrorKind::InvalidData);
    assert!(message.ends_with("has CERTIFICATE in it: expected the server's private key in PEM"));

    let (_, other) = identity("localhost").to_files();
    let message = fails(&certificate, &other, ErrorKind::InvalidData);
    assert!(
        message.contains("is not the private key of the certificate in"),
        "{message}"
    );

    let text = unix_path();
    fs::write(&text, "no certificate").unwrap();
    let message = fails(&text, &key, ErrorKind::InvalidData);
    assert!(
        message.contains("has no PEM, but 14 bytes of something else"),
        "{message}"
    );
    let bad = unix_path();
    fs::write(
        &bad,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    fails(&bad, &key, ErrorKind::InvalidData);
    for path in [certificate, key, other, text, bad] {
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_failed_reload_changes_nothing() {
    let (certificate, key) = identity("localhost").to_files();
    let tls = Tls::from_pem_files(&certificate, &key).unwrap();
    assert!(format!("{tls:?}").contains(certificate.to_str().unwrap()));
    tls.reload().unwrap();
    fs::remove_file(&certificate).unwrap();
    assert_eq!(tls.reload().unwrap_err().kind(), ErrorKind::NotFound);
    fs::remove_file(&key).unwrap();
    // And of a configuration there are no files to read again.
    assert_eq!(
        localhost().reload().unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    let required = localhost().require_client_certificates(&key);
    assert_eq!(required.unwrap_err().kind(), ErrorKind::InvalidInput);
}

async fn a_protocol_is_agreed_on(runtime: TestRuntime) {
    let server = crate::support::server(runtime)
        .listen_tls("127.0.0.1:0", localhost().alpn(["h2", "http/1.1"]))
        .deadline(None)
        .bind()
        .await
        .unwrap();
    let running = server.spawn(async move |conn: Connection| {
        let protocol = conn.tls().unwrap().protocol;
        assert!(protocol.is_none_or(|it| it == b"http/1.1"));
        echo(conn).await
    });
    for (asked, agreed) in [
        (&[][..], None),
        (&["spdy", "http/1.1"], Some(&b"http/1.1"[..])),
    ] {
        let mut config = client_config(None, None);
        config.alpn_protocols = asked.iter().map(|it| it.as_bytes().to_vec()).collect();
        let mut client = Secure::over(Client::of(&running), "localhost", config);
        client.shake().unwrap();
        assert_eq!(client.tls.alpn_protocol(), agreed);
        assert_eq!(client.ask("hello"), "hello");
    }
    let mut config = client_config(None, None);
    config.alpn_protocols = vec![b"spdy".to_vec()];
    let mut client = Secure::over(Client::of(&running), "localhost", config);
    let error = client.shake().unwrap_err().to_string();
    assert_eq!(error, "received fatal alert: NoApplicationProtocol");
    let handle = running.handle();
    eventually("a failed handshake", || {
        handle.stats().failed_handshakes == 1
    });
    handle.shutdown();
    assert_eq!(settled(running.await).completed, 2);
}

/// Has a certificate for each of two names; panics at a third.
#[derive(Debug)]
struct ByName(Arc<CertifiedKey>, Arc<CertifiedKey>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match hello.server_name() {
            Some("one.example") => Some(self.0.clone()),
            Some("two.example") => Some(self.1.clone()),
            Some("three.example") => panic!("as the test wants it"),
            _ => None,
        }
    }
}

fn by_name() -> Tls {
    let [one, two] = ["one.example", "two.example"].map(|name| {
        let identity = identity(name);
        let key = sign::any_supported_type(&identity.key()).unwrap();
        Arc::new(CertifiedKey::new(vec![identity.certificate()], key))
    });
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth();
    config.with_cert_resolver(Arc::new(ByName(one, two))).into()
}

async fn a_name_chooses_the_certificate(runtime: TestRuntime) {
    let server = crate::support::server(runtime)
        .listen_tls("127.0.0.1:0", by_name())
        .deadline(None);
    let running = server
        .bind()
        .await
        .unwrap()
        .spawn(async |conn: Connection| {
            let name = conn.tls().unwrap().server_name.unwrap();
            let (_reader, mut writer) = conn.split();
            futures_lite::AsyncWriteExt::write_all(&mut writer, name.as_bytes()).await
        });
    for name in ["one.example", "two.example"] {
        let mut client = Secure::over(Client::of(&running), name, client_config(None, None));
        client.shake().unwrap();
        assert_eq!(client.rest(), name);
    }
    let config = client_config(None, None);
    let mut client = Secure::over(Client::of(&running), "four.example", config);
    assert!(client.shake().is_err());
    let handle = running.handle();
    eventually("a failed handshake", || {
        handle.stats().failed_handshakes == 1
    });
    handle.shutdown();
    assert_eq!(settled(running.await).completed, 2);
}

async fn a_resolver_that_panics_ends_one_connection(runtime: TestRuntime) {
    let server = crate::support::server(runtime)
        .listen_tls("127.0.0.1:0", by_name())
        .deadline(None);
    let running = server.bind().await.unwrap().spawn(echo);
    let config = client_config(None, None);
    let mut client = Secure::over(Client::of(&running), "three.example", config);
    assert!(client.shake().is_err());
    let config = client_config(None, None);
    let mut client = Secure::over(Client::of(&running), "one.example", config);
    client.shake().unwrap();
    assert_eq!(client.ask("hello"), "hello");
    running.handle().shutdown();
    let report = settled(running.await);
    assert_eq!((report.panicked, report.completed), (1, 1));
}

async fn clients_show_who_they_are(runtime: TestRuntime) {
    let (certificate, key) = identity("localhost").to_files();
    let authorities = unix_path();
    fs::write(&authorities, authority().0.pem()).unwrap();
    let tls = Tls::from_pem_files(&certificate, &key).unwrap();
    let tls = tls.require_client_certificates(&authorities).unwrap();
    tls.reload().unwrap();
    for path in [certificate, key, authorities] {
        fs::remove_file(path).unwrap();
    }
    let known: Identity = identity("somebody");
    let expected = known.certificate();
    let server = crate::support::server(runtime)
        .listen_tls("127.0.0.1:0", &tls)
        .deadline(None);
    let running = server
        .bind()
        .await
        .unwrap()
        .spawn(async move |conn: Connection| {
            assert_eq!(conn.tls().unwrap().peer_certificates, [expected]);
            // Also after the connection has moved elsewhere.
            let control = conn.control();
            assert_eq!(control.tls().unwrap().peer_certificates.len(), 1);
            echo(conn).await
        });
    for only in [true, false] {
        let config = client_config(Some(only), Some(&known));
        let mut client = Secure::over(Client::of(&running), "localhost", config);
        client.shake().unwrap();
        assert_eq!(client.ask("hello"), "hello");
    }
    let mut nobody = Secure::begun(&running);
    // With TLS 1.3 a client has finished its handshake before it is told.
    let _may_be_told_later = nobody.shake();
    assert!(std::io::Read::read(&mut nobody, &mut [0]).is_err());
    let handle = running.handle();
    eventually("a failed handshake", || {
        handle.stats().failed_handshakes == 1
    });
    handle.shutdown();
    assert_eq!(settled(running.await).completed, 2);
}

async fn another_certificate_is_used_from_a_reload_on(runtime: TestRuntime) {
    let old = identity("localhost");
    let (certificate, key) = old.to_files();
    let tls = Tls::from_pem_files(&certificate, &key).unwrap();
    let server = crate::support::server(runtime)
        .listen_tls("127.0.0.1:0", &tls)
        .deadline(None);
    let running = server.bind().await.unwrap().spawn(echo);
    let shown = |client: &Secure| client.tls.peer_certificates().unwrap()[0].clone();
    let mut first = Secure::of(&running);
    assert_eq!(shown(&first), old.certificate());
    assert_eq!(first.ask("hello"), "hello");

    let new = identity("localhost");
    fs::write(&certificate, new.0.pem()).unwrap();
    // Its key has not been written yet.
    assert_eq!(tls.reload().unwrap_err().kind(), ErrorKind::InvalidData);
    assert_eq!(shown(&Secure::of(&running)), old.certificate());
    fs::write(&key, new.1.serialize_pem()).unwrap();
    tls.reload().unwrap();
    let mut second = Secure::of(&running);
    assert_eq!(shown(&second), new.certificate());
    let newest = identity("localhost");
    tls.replace(newest.config());
    assert_eq!(shown(&Secure::of(&running)), newest.certificate());
    assert_eq!(first.ask("still here"), "still here");
    assert_eq!(second.ask("and here"), "and here");
    for path in [certificate, key] {
        fs::remove_file(path).unwrap();
    }
    running.handle().shutdown();
    settled(running.await);
}
