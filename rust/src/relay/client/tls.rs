//! TLS to a relay: how its certificate is judged. A pinned key says who the relay is; otherwise a certificate authority does, of a
//! file or of the system.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{aws_lc_rs, verify_tls12_signature, verify_tls13_signature, CryptoProvider};
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;
use tokio_rustls::TlsConnector;
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::OID_SIG_ED25519;
use x509_parser::prelude::FromDer;

use crate::addr::NodeId;
use crate::error::{Error, Reason, Result, Stage};
use crate::relay::RelayUri;

/// Shakes hands with the relay that the URI names.
pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(uri: &RelayUri, stream: S) -> Result<TlsStream<S>> {
    let config = config(uri).await?;
    let name = ServerName::try_from(uri.host.clone())
        .map_err(|_| Error::new(Reason::InvalidArgument, Stage::Setup, format!("{:?} is no name for TLS", uri.host)))?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| explain(&error))
}

/// TLS 1.2 too: what Debian ships of coturn speaks nothing newer. The relay sees ciphertext of TLS 1.3 either way.
async fn config(uri: &RelayUri) -> Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = verifier(uri, &provider).await?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| Error::new(Reason::Internal, Stage::Setup, format!("TLS cannot be set up: {error}")))?
        .dangerous() // rustls' word for a verifier of one's own
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    // a pinned relay needs no name, and an onlooker need not read it
    config.enable_sni = uri.key.is_none();
    Ok(config)
}

async fn verifier(uri: &RelayUri, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>> {
    if let Some(key) = uri.key {
        return Ok(Arc::new(Pinned { key, provider: provider.clone() }));
    }
    let bad = |what: String| Error::new(Reason::InvalidArgument, Stage::Setup, what);
    let ca = uri.ca.clone();
    // reading files blocks; the system's store may be hundreds of them
    let roots = tokio::task::spawn_blocking(move || match ca {
        Some(path) => roots_of(&path).map_err(|error| bad(format!("ca={}: {error}", path.display()))),
        None => Ok(rustls_native_certs::load_native_certs().certs),
    });
    let roots = roots.await.map_err(|error| Error::new(Reason::Internal, Stage::Setup, error.to_string()))??;
    let mut store = RootCertStore::empty();
    // a system's store holds a few that webpki does not take: they are left out
    store.add_parsable_certificates(roots);
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
        .build()
        .map(|verifier| verifier as Arc<dyn ServerCertVerifier>)
        .map_err(|_| bad("no certificate authority is known: give ca=FILE or key=NODE-ID".to_owned()))
}

fn roots_of(path: &std::path::Path) -> std::result::Result<Vec<CertificateDer<'static>>, rustls_pki_types::pem::Error> {
    CertificateDer::pem_file_iter(path)?.collect()
}

fn explain(error: &std::io::Error) -> Error {
    use rustls::Error as Tls;
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
    let (reason, what) = match tls {
        Some(Tls::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) => {
            (Reason::IdentityMismatch, "its certificate holds another key than the one that key= names".to_owned())
        }
        Some(Tls::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            let what = "its certificate is signed by no known authority: give ca=FILE, or key=NODE-ID to pin its key";
            (Reason::RelayUnreachable, what.to_owned())
        }
        // the reasons for nodes come with advice for nodes
        Some(what) => (Reason::RelayUnreachable, what.to_string()),
        None => (Reason::RelayUnreachable, error.to_string()),
    };
    Error::new(reason, Stage::Relay, what)
}

/// The certificate holds this key, and the relay proves that it has it. Nothing else in it counts, not even its dates: the key
/// was told by whoever runs the relay.
#[derive(Debug)]
struct Pinned {
    key: NodeId,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let (_, certificate) = X509Certificate::from_der(end_entity)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let key = certificate.public_key();
        let is_ed25519 = key.algorithm.algorithm == OID_SIG_ED25519;
        match is_ed25519 && *key.subject_public_key.data == *self.key.public_key() {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
