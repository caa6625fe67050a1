//! Who a node is, and TLS 1.3 between nodes (docs/protocol.md section 4).
//!
//! | file | what |
//! |---|---|
//! | `certificate` | one certificate: written, read |
//! | `chain` | certificates -> the nodes they prove |
//! | `identity` | our own key and chain: made, rotated, renewed |
//! | `file` | an identity on disk, for our eyes only |
//! | `verifier` | the chain's rules inside rustls, and verdicts on their way out of it |
//! | `context` | rustls configurations for one identity |
//! | `alert` | the last record of a session that is taken away from its peer |
//! | `derived` | secrets that follow from a key |
//! | `introduction` | two nodes prove who they are through a third that they need not trust |
//! | `forge` | identities that break one rule each, for tests |
//!
//! A handshake is over when [`finish`] says so: rustls does not ask the verifier again for a resumed session, whose peer may
//! have expired since.

mod alert;
mod certificate;
mod chain;
mod context;
mod derived;
mod file;
#[doc(hidden)]
pub mod forge;
mod identity;
pub mod introduction;
#[cfg(test)]
mod tests;
mod verifier;

use std::time::SystemTime;

use crate::addr::{NodeId, PingKeys};
use crate::config::TlsConfig;
use crate::error::{Error, Reason, Result, Stage};

pub use alert::{access_denied, is_access_denied};
pub use chain::PeerIdentity;
pub use context::{TlsContext, ALPN};
pub use identity::{pem_fault, Identity};
pub use verifier::map_tls_error;

/// The exporter label for [`ping_keys`] (RFC 8446 section 7.5): no context, 64 bytes.
pub const PING_KEYS_LABEL: &[u8] = b"EXPORTER-keynet-ping-1";

/// Who the peer is, once the handshake is over; for both roles, and for resumed sessions, whose chain is judged again here
/// with today's date. `wanted` is the node that was dialled; the acceptor wants none.
///
/// Fails with the reasons of a bad chain, `IdentityMismatch`, `CertificateMissing`, and `TlsFailed` when the peer did not
/// agree on [`ALPN`].
pub fn finish(
    connection: &rustls::CommonState,
    wanted: Option<&NodeId>,
    config: &TlsConfig,
    now: SystemTime,
) -> Result<PeerIdentity> {
    let fail = |reason, what| {
        let error = Error::new(reason, Stage::Tls, what);
        Err(wanted.into_iter().fold(error, |error, wanted| error.with_node(*wanted)))
    };
    if connection.is_handshaking() {
        return fail(Reason::Internal, "asked for the peer's identity before the handshake was over");
    }
    if connection.alpn_protocol() != Some(ALPN) {
        return fail(Reason::TlsFailed, "the peer does not speak keynet/1 (ALPN)");
    }
    match connection.peer_certificates() {
        Some(chain) => chain::judge(chain, wanted, config, now),
        None => fail(Reason::CertificateMissing, "the peer showed no certificate"),
    }
}

/// The exporter label for [`crate::utp::TagKeys`] of the stream under a session: no context, 32 bytes.
pub const TAG_KEYS_LABEL: &[u8] = b"EXPORTER-keynet-tags-1";

/// The keys of this session's pings from the 64 bytes exported under [`PING_KEYS_LABEL`] (docs/protocol.md section 2).
pub fn ping_keys(exported: &[u8; 64], dialler: bool) -> PingKeys {
    let mut key = [0; 32];
    let (mut dialler_name, mut acceptor_name) = ([0; 16], [0; 16]);
    key.copy_from_slice(&exported[..32]);
    dialler_name.copy_from_slice(&exported[32..48]);
    acceptor_name.copy_from_slice(&exported[48..]);
    let (local_name, remote_name) = if dialler { (dialler_name, acceptor_name) } else { (acceptor_name, dialler_name) };
    PingKeys { key, local_name, remote_name }
}
