//! Secrets that follow from an identity: the same after each start, and of no use to find the key by.

use aws_lc_rs::hkdf::{KeyType, Salt, HKDF_SHA256};
use base64::prelude::{Engine, BASE64_URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use super::identity::Identity;
use crate::error::{Error, Reason, Result, Stage};

impl Identity {
    /// 32 bytes as base64 without padding, for one purpose and one `period` of it: HKDF-SHA256 with the key in PKCS#8 as what goes in,
    /// the label as salt, and purpose, a zero and the period (u64, big-endian) as info.
    ///
    /// A rotated identity has other secrets: whoever has the old key is not to know what the new one protects.
    pub fn derive(&self, purpose: &str, period: u64) -> Result<Zeroizing<String>> {
        let failed = |_| Error::new(Reason::Internal, Stage::Setup, "no secret can be derived from the identity");
        let (purpose, period) = (purpose.as_bytes(), period.to_be_bytes());
        let info = [purpose, &[0], &period];
        let mut secret = Zeroizing::new([0; 32]);
        let key = Salt::new(HKDF_SHA256, LABEL).extract(self.pkcs8());
        key.expand(&info, Length).and_then(|derived| derived.fill(&mut secret[..])).map_err(failed)?;
        Ok(Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(&secret[..])))
    }
}

const LABEL: &[u8] = b"keynet-derived-1";

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn a_secret_is_that_of_the_key_the_purpose_and_the_period_alone() {
        let identity = Identity::generate(SystemTime::now()).unwrap();
        let again = Identity::from_pem(&identity.to_pem()).unwrap();
        let secret = identity.derive("relay", 7).unwrap();
        assert_eq!(secret, again.derive("relay", 7).unwrap(), "the file is all there is after a restart");
        assert_eq!(secret.len(), 43);
        let renewed = identity.renew(SystemTime::now()).unwrap();
        assert_eq!(secret, renewed.derive("relay", 7).unwrap());
        let others = [
            identity.derive("relay", 8).unwrap(),
            identity.derive("other", 7).unwrap(),
            identity.rotate(SystemTime::now()).unwrap().derive("relay", 7).unwrap(),
            Identity::generate(SystemTime::now()).unwrap().derive("relay", 7).unwrap(),
        ];
        assert!(others.iter().all(|other| *other != secret));
    }
}
