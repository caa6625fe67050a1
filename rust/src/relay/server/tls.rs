//! What the relay shows to clients on TLS.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs as crypto;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{Error, Reason, Result, Stage};
use crate::tls::{pem_fault, Identity};

/// A certificate and what leads to its authority, leaf first, and its key, both as PEM; for clients that trust the authority.
pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Arc<ServerConfig>> {
    let wrong =
        |what: String| Error::new(Reason::InvalidArgument, Stage::Setup, format!("the relay's certificate: {what}"));
    let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificates).collect();
    let chain = chain.map_err(|error| wrong(pem_fault(&error)))?;
    if chain.is_empty() {
        return Err(wrong("there is none in the file".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| wrong(format!("its key: {}", pem_fault(&error))))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(crypto::default_provider()))
        // clients of other makers may know no more than TLS 1.2
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| wrong(error.to_string()))?;
    // the session travels inside the ticket: strangers cannot fill a table
    config.ticketer = crypto::Ticketer::new().map_err(|error| wrong(error.to_string()))?;
    Ok(Arc::new(config))
}

/// The node's own certificate; for clients that know its key.
pub fn from_identity(identity: &Identity) -> Result<Arc<ServerConfig>> {
    let pem = identity.to_pem();
    from_pem(pem.as_bytes(), pem.as_bytes())
}
