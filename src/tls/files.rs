//! TLS from PEM files, and what can be wrong with these.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::{Inner, Tls};

/// The files that a configuration is made of.
#[derive(Clone, Debug)]
pub(super) struct Files {
    certificates: PathBuf,
    key: PathBuf,
    /// Who signs the certificates that clients must have.
    clients: Option<PathBuf>,
}

impl Tls {
    /// TLS with the certificate and the private key in these PEM files.
    ///
    /// The server's own certificate comes first in its file, and then those that lead from it to a
    /// root. The files are read here, on this thread, and again by [`reload`](Self::reload).
    ///
    /// # Errors
    /// The system's where a file cannot be read; `InvalidData` where it has not in it what it should
    /// have, or where the key is not that of the certificate. The message names the file, what was
    /// found in it, and what was expected.
    pub fn from_pem_files(
        certificates: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> io::Result<Self> {
        let files = Files {
            certificates: certificates.into(),
            key: key.into(),
            clients: None,
        };
        files.into_tls(None)
    }

    /// Has clients show a certificate that one of those in this PEM file has signed: a client without
    /// is refused in the handshake. Its certificate is in [`TlsInfo`](super::TlsInfo).
    ///
    /// Where it is not to be demanded, or revocation is to be looked up, this is said in a
    /// `rustls::ServerConfig`.
    ///
    /// # Errors
    /// As [`from_pem_files`](Self::from_pem_files); `InvalidInput` where this is not made of files.
    pub fn require_client_certificates(self, authorities: impl Into<PathBuf>) -> io::Result<Self> {
        let mut files = self.files()?.clone();
        files.clients = Some(authorities.into());
        files.into_tls(self.0.alpn.clone())
    }

    /// Reads the files again, for the connections that come from now on: those that there are go on
    /// undisturbed. It reads on this thread.
    ///
    /// # Errors
    /// As [`from_pem_files`](Self::from_pem_files); what there was stays in use then. `InvalidInput`
    /// where this is not made of files: use [`replace`](Self::replace).
    pub fn reload(&self) -> io::Result<()> {
        self.replace(self.files()?.read()?);
        Ok(())
    }

    fn files(&self) -> io::Result<&Files> {
        self.0.files.as_ref().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "this TLS was made of a `rustls::ServerConfig`: expected one of PEM files",
            )
        })
    }
}

impl Files {
    fn into_tls(self, alpn: Option<Vec<Vec<u8>>>) -> io::Result<Tls> {
        let mut config = self.read()?;
        config.alpn_protocols = alpn.clone().unwrap_or_default();
        Ok(Tls(Arc::new(Inner {
            current: Mutex::new(Arc::new(config)),
            files: Some(self),
            alpn,
        })))
    }

    /// Reads the files.
    fn read(&self) -> io::Result<ServerConfig> {
        let provider = Arc::new(provider());
        let chain = certificates(&self.certificates, "the server's certificate")?;
        let pem = read(&self.key, "the server's private key")?;
        let key = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|error| unfit(&self.key, "the server's private key", &pem, &error))?;
        let config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?;
        let config = match &self.clients {
            None => config.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(path, "the certificates of client authorities")? {
                    roots
                        .add(root)
                        .map_err(|error| invalid(path, &format!("is no authority's: {error}")))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|error| invalid(path, &error.to_string()))?;
                config.with_client_cert_verifier(verifier)
            }
        };
        config.with_single_cert(chain, key).map_err(|error| {
            let message = match error {
                rustls::Error::InconsistentKeys(_) => format!(
                    "is not the private key of the certificate in {}: expected the one it was made \
                     with",
                    self.certificates.display()
                ),
                error => format!(
                    "and the certificate in {} cannot be used: {error}",
                    self.certificates.display()
                ),
            };
            invalid(&self.key, &message)
        })
    }
}

/// The cryptography where the user has said nothing: rustls panics if it is left to the process's
/// default and two crates have asked for two.
fn provider() -> CryptoProvider {
    #[cfg(feature = "tls")]
    return rustls::crypto::ring::default_provider();
    #[cfg(not(feature = "tls"))]
    rustls::crypto::aws_lc_rs::default_provider()
}

fn read(path: &Path, what: &str) -> io::Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| {
        let message = format!(
            "cannot read {}: {error}: expected a PEM file with {what}",
            path.display()
        );
        io::Error::new(error.kind(), message)
    })
}

/// The certificates in a file, of which there has to be one.
fn certificates(path: &Path, what: &str) -> io::Result<Vec<CertificateDer<'static>>> {
    let pem = read(path, what)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(unfit(path, what, &pem, &pem::Error::NoItemsFound)),
        Err(error) => Err(unfit(path, what, &pem, &error)),
    }
}

/// The error of a file that should have something else in it.
fn unfit(path: &Path, what: &str, pem: &[u8], error: &pem::Error) -> io::Error {
    let found = match error {
        pem::Error::NoItemsFound => sections(pem),
        error => error.to_string(),
    };
    invalid(path, &format!("has {found} in it: expected {what} in PEM"))
}

/// The titles of what is in a PEM file.
fn sections(pem: &[u8]) -> String {
    let text = String::from_utf8_lossy(pem);
    let titles = text.lines().filter_map(|line| {
        let title = line.trim().strip_prefix("-----BEGIN ")?;
        title.strip_suffix("-----")
    });
    let titles: Vec<_> = titles.collect();
    if titles.is_empty() {
        format!("no PEM, but {} bytes of something else,", pem.len())
    } else {
        titles.join(", ")
    }
}

fn invalid(path: &Path, message: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{} {message}", path.display()),
    )
}
