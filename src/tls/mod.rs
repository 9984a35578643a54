//! TLS, by rustls (features `tls` and `tls-aws-lc-rs`): what a server's TLS is configured with, and
//! what was agreed on with a client.

use std::fmt;
use std::sync::{Arc, Mutex};

use rustls::pki_types::CertificateDer;
use rustls::{ProtocolVersion, ServerConfig, ServerConnection};

use crate::sync::lock;

#[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
mod files;
mod records;
mod session;

pub(crate) use self::session::{Done, TlsState, Wire};

/// A server's side of TLS: its certificate, and what else rustls is configured with.
///
/// It is given to [`Builder::listen_tls`](crate::Builder::listen_tls) and to
/// [`Connection::start_tls`](crate::Connection::start_tls). A clone is the same: what [`replace`](Self::replace) and
/// [`reload`](Self::reload) change is changed for all, for the connections that come afterwards.
/// Those that there are keep what they have begun with.
///
/// It speaks TLS 1.2 and 1.3. It is made of PEM files, with the crate's own choice of cryptography,
/// ring or, where only the feature `tls-aws-lc-rs` is on, aws-lc-rs; or of a `rustls::ServerConfig`, with
/// whatever that has: certificates by server name, optional client certificates, another provider.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    current: Mutex<Arc<ServerConfig>>,
    #[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
    files: Option<files::Files>,
    /// What was asked for by [`Tls::alpn`]; else the configuration's own stays.
    alpn: Option<Vec<Vec<u8>>>,
}

impl Tls {
    /// The protocols that are offered by ALPN, the preferred first; none by default.
    ///
    /// A client that offers others, and none of these, is refused in the handshake. For HTTP it is
    /// [`web::ALPN`](crate::web::ALPN).
    #[must_use]
    pub fn alpn(self, protocols: impl IntoIterator<Item = impl Into<Vec<u8>>>) -> Self {
        let alpn: Vec<Vec<u8>> = protocols.into_iter().map(Into::into).collect();
        let current = Mutex::new(with_alpn(self.config(), &alpn));
        Self(Arc::new(Inner {
            current,
            #[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
            files: self.0.files.clone(),
            alpn: Some(alpn),
        }))
    }

    /// Uses this configuration for the connections that come from now on. What was given to
    /// [`alpn`](Self::alpn) stays.
    pub fn replace(&self, config: impl Into<Arc<ServerConfig>>) {
        let config = config.into();
        let config = match &self.0.alpn {
            Some(alpn) => with_alpn(config, alpn),
            None => config,
        };
        let old = std::mem::replace(&mut *lock(&self.0.current), config);
        // Outside the lock: a configuration has code of the user's in it.
        drop(old);
    }

    /// What new connections are served with.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        lock(&self.0.current).clone()
    }
}

/// The configuration with these protocols.
fn with_alpn(mut config: Arc<ServerConfig>, alpn: &[Vec<u8>]) -> Arc<ServerConfig> {
    Arc::make_mut(&mut config).alpn_protocols = alpn.to_vec();
    config
}

impl From<Arc<ServerConfig>> for Tls {
    fn from(config: Arc<ServerConfig>) -> Self {
        Self(Arc::new(Inner {
            current: Mutex::new(config),
            #[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
            files: None,
            alpn: None,
        }))
    }
}

impl From<ServerConfig> for Tls {
    fn from(config: ServerConfig) -> Self {
        Arc::new(config).into()
    }
}

impl From<&Self> for Tls {
    fn from(tls: &Self) -> Self {
        tls.clone()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tls = f.debug_struct("Tls");
        #[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
        if let Some(files) = &self.0.files {
            tls.field("files", files);
        }
        tls.finish_non_exhaustive()
    }
}

/// What was agreed on with a client in the handshake, from [`Connection::tls`](crate::Connection::tls).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TlsInfo {
    /// TLS 1.2 or 1.3.
    pub version: Option<ProtocolVersion>,
    /// The name by which the client asked for the server (SNI), if it named one.
    pub server_name: Option<String>,
    /// The protocol that was chosen by ALPN; `None` where none was.
    pub protocol: Option<Vec<u8>>,
    /// The client's certificates, its own first, as they were verified; empty where none was asked
    /// for, or sent.
    pub peer_certificates: Vec<CertificateDer<'static>>,
}

impl TlsInfo {
    fn new(session: &ServerConnection) -> Self {
        let certificates = session.peer_certificates().unwrap_or_default();
        let certificates = certificates.iter().map(|it| it.clone().into_owned());
        Self {
            version: session.protocol_version(),
            server_name: session.server_name().map(Into::into),
            protocol: session.alpn_protocol().map(Into::into),
            peer_certificates: certificates.collect(),
        }
    }
}
