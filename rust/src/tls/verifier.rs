//! The rules of a chain as rustls asks for them, one verifier for both roles, and how a verdict gets out of rustls again.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::signature::{UnparsedPublicKey, ED25519};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::certificate::Certificate;
use super::chain::judge;
use super::Identity;
use crate::addr::NodeId;
use crate::config::TlsConfig;
use crate::error::{Error, Reason, Stage};

/// Judges the peer's chain during a full handshake. Which node a dialler wants comes with the server name, so that one
/// configuration serves all nodes, and rustls' session cache, which goes by that name, is one per node.
#[derive(Debug)]
pub(super) struct Verifier {
    pub config: TlsConfig,
    /// Who judges; tests judge for nobody.
    pub own: Option<Identity>,
}

/// The server name that carries `wanted` to the verifier. It never leaves this machine: SNI is off.
pub(super) fn server_name(wanted: &NodeId) -> ServerName<'static> {
    // 53 letters and digits and a known suffix always form a host name; an address would fail the handshake, not open it
    ServerName::try_from(format!("{wanted}{SUFFIX}"))
        .unwrap_or(ServerName::IpAddress(std::net::IpAddr::from([0; 4]).into()))
}

fn wanted_node(name: &ServerName<'_>) -> Option<NodeId> {
    let ServerName::DnsName(name) = name else { return None };
    name.as_ref().strip_suffix(SUFFIX)?.parse().ok()
}

const SUFFIX: &str = ".keynet";

impl Verifier {
    fn judge_chain(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        wanted: Option<&NodeId>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let chain: Vec<&[u8]> = std::iter::once(end_entity).chain(intermediates).map(AsRef::as_ref).collect();
        let now = UNIX_EPOCH + Duration::from_secs(now.as_secs());
        let now = self.own.as_ref().map_or(now, |own| own.judging_time(now));
        judge(&chain, wanted, &self.config, now).map(|_| ()).map_err(wrap)
    }

    /// The key is taken from the certificate as the chain's rules read it: a second parser could read another one.
    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if signed.scheme != SignatureScheme::ED25519 {
            return Err(PeerIncompatible::NoSignatureSchemesInCommon.into());
        }
        let certificate =
            Certificate::parse(certificate).map_err(|f| wrap(Error::new(f.reason, Stage::Tls, f.what)))?;
        UnparsedPublicKey::new(&ED25519, certificate.node.public_key()).verify(message, signed.signature()).map_err(
            |_| {
                let what =
                    format!("the peer does not hold the key of {}, whose certificate it shows", certificate.node);
                wrap(Error::new(Reason::CertificateInvalid, Stage::Tls, what))
            },
        )?;
        Ok(HandshakeSignatureValid::assertion())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let wanted = wanted_node(server_name).ok_or_else(|| {
            wrap(Error::new(Reason::Internal, Stage::Tls, "the server name does not come from TlsContext::server_name"))
        })?;
        self.judge_chain(end_entity, intermediates, Some(&wanted), now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // any node may come this far: the access list is asked when it is known which service is wanted
        self.judge_chain(end_entity, intermediates, None, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// What a failure of rustls means here. The verifier's own verdicts come back as they were given; an alert about our
/// certificate is `RejectedByPeer`. In TLS 1.3 that alert reaches the dialler only after its handshake has ended: errors of
/// the first read need this function as well.
pub fn map_tls_error(error: &rustls::Error) -> Error {
    use rustls::Error as Tls;
    let (reason, what) = match error {
        Tls::InvalidCertificate(CertificateError::Other(OtherError(inner))) => match inner.downcast_ref::<Error>() {
            Some(verdict) => return verdict.clone(),
            None => (Reason::CertificateInvalid, inner.to_string()),
        },
        Tls::InvalidCertificate(inner) => (Reason::CertificateInvalid, inner.to_string()),
        Tls::NoCertificatesPresented => (Reason::CertificateMissing, "the peer showed no certificate".to_owned()),
        Tls::AlertReceived(alert) if is_about_our_certificate(*alert) => {
            (Reason::RejectedByPeer, format!("the peer answered with the alert {alert:?}"))
        }
        Tls::AlertReceived(AlertDescription::NoApplicationProtocol) | Tls::NoApplicationProtocol => {
            (Reason::TlsFailed, "the peer does not speak keynet/1 (ALPN)".to_owned())
        }
        other => (Reason::TlsFailed, other.to_string()),
    };
    Error::new(reason, Stage::Tls, what)
}

fn wrap(verdict: Error) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(verdict))).into()
}

/// RFC 8446 section 6.2.
fn is_about_our_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    )
}
