//! The last record of a session that this node ends because its peer may no longer have it: the alert `access_denied` (RFC
//! 8446 section 6.2). rustls sends no alert on request, so it is sealed here with the session's own keys; whoever cannot open
//! it cannot have sent it, and a peer that knows nothing of it sees TLS fail, which is no end in order.

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305};
use rustls::{ConnectionTrafficSecrets as Secrets, ExtractedSecrets};

/// What the peer is told last, from the secrets of a session on which everything else has been sent. `None`: the session uses
/// a cipher that is not ours.
pub fn access_denied(secrets: &ExtractedSecrets) -> Option<Vec<u8>> {
    let (number, secrets) = &secrets.tx;
    let (algorithm, key, iv) = match secrets {
        Secrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
        Secrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
        Secrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
        _ => return None,
    };
    // RFC 8446 section 5.3: the number of the record, padded to the left, XOR the IV
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    nonce.iter_mut().zip(iv.as_ref()).for_each(|(byte, iv)| *byte ^= iv);
    let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).ok()?);
    let mut sealed = vec![FATAL, ACCESS_DENIED, CONTENT_ALERT];
    let [high, low] = u16::try_from(sealed.len() + algorithm.tag_len()).ok()?.to_be_bytes();
    // section 5.2: the header is what a record of application data has, and is authenticated
    let header = [CONTENT_APPLICATION_DATA, 3, 3, high, low];
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(header), &mut sealed).ok()?;
    Some([&header[..], &sealed].concat())
}

/// Whether a peer has said that.
pub fn is_access_denied(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::AlertReceived(rustls::AlertDescription::AccessDenied))
}

const FATAL: u8 = 2;
const ACCESS_DENIED: u8 = 49;
const CONTENT_ALERT: u8 = 21;
const CONTENT_APPLICATION_DATA: u8 = 23;
