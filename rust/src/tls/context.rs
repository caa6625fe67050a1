//! The rustls configurations of one identity.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{self as crypto, cipher_suite, kx_group};
use rustls::crypto::CryptoProvider;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};

use super::verifier::{self, Verifier};
use super::{map_tls_error, Identity};
use crate::addr::NodeId;
use crate::config::TlsConfig;
use crate::error::{Error, Reason, Result, Stage};

/// The protocol that both sides must agree on (RFC 7301).
pub const ALPN: &[u8] = b"keynet/1";

/// TLS for one identity: a clone shares the configurations, and with them tickets and session cache. A rotated identity gets
/// a context of its own, so that no session of the old one is resumed.
#[derive(Clone)]
pub struct TlsContext {
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
}

impl TlsContext {
    /// Fails with `Internal` when the operating system gives no randomness or the key is refused.
    pub fn new(identity: &Identity, config: &TlsConfig) -> Result<Self> {
        let provider = Arc::new(provider());
        let verifier = Arc::new(Verifier { config: config.clone(), own: Some(identity.clone()) });
        let key = crypto::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(identity.pkcs8())).map_err(setup_error)?;
        let own = Arc::new(SingleCertAndKey::from(CertifiedKey::new(identity.chain().to_vec(), key)));

        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(setup_error)?
            .dangerous() // rustls' word for a verifier that does not ask certificate authorities
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_cert_resolver(own.clone());
        client.alpn_protocols = vec![ALPN.to_vec()];
        // the name would tell an onlooker who is called
        client.enable_sni = false;
        // for the last record of a session that is ended against the peer's will (`alert`)
        client.enable_secret_extraction = true;
        client.resumption = Resumption::in_memory_sessions(config.max_tickets);

        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(setup_error)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(own);
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.enable_secret_extraction = true;
        // the session travels inside the ticket: strangers cannot fill a table, nor push others out of one
        server.ticketer = crypto::Ticketer::new().map_err(setup_error)?;

        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }

    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// Tells the verifier which node is dialled; never sent.
    pub fn server_name(wanted: &NodeId) -> ServerName<'static> {
        verifier::server_name(wanted)
    }
}

impl fmt::Debug for TlsContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsContext").finish_non_exhaustive()
    }
}

/// AES first, 128 bits before 256: the strength of the whole is that of Ed25519, about 128 bits. The hybrid group is first;
/// rustls sends an X25519 share along with it, so that a peer without it costs no round trip.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..crypto::default_provider()
    }
}

fn setup_error(error: rustls::Error) -> Error {
    Error::new(Reason::Internal, Stage::Setup, format!("TLS cannot be set up: {}", map_tls_error(&error).detail))
}
