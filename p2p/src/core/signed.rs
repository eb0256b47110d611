//! Ads on the wire: the ad's bytes, the signer's public key and the signature.
//!
//! The signature covers `"cocoon/ad/v1" ‖ 0x00 ‖ ad bytes`, so that nothing else this key signs (gossip
//! envelopes, peer records, vouchers) can be replayed as an ad or the other way round. The bytes that
//! were signed are kept and forwarded as they came; they are never re-encoded.

use bincode::{Decode, Encode};
use libp2p::identity::{KeyType, Keypair, PublicKey};

use super::ad::{Ad, AdError, MAX_AD_BYTES, PeerKey};
use crate::codec;

const DOMAIN: &[u8] = b"cocoon/ad/v1\0";

/// An ad with its key and signature.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SignedAd {
    ad: Vec<u8>,
    public_key: Vec<u8>,
    signature: Vec<u8>,
}

fn message(ad: &[u8]) -> Vec<u8> {
    [DOMAIN, ad].concat()
}

impl SignedAd {
    /// Signs a valid ad with the key of the peer that it names.
    pub fn sign(ad: &Ad, keypair: &Keypair) -> Result<Self, AdError> {
        ad.validate()?;
        let signer = PeerKey::from(keypair.public().to_peer_id());
        if ad.peer != signer {
            return Err(AdError::PeerMismatch { named: ad.peer.clone(), signer });
        }
        let bytes = codec::encode(ad).map_err(AdError::Encoding)?;
        let signature =
            keypair.sign(&message(&bytes)).map_err(|error| AdError::Signing(error.to_string()))?;
        let signed = Self { ad: bytes, public_key: keypair.public().encode_protobuf(), signature };
        match signed.encode()?.len() {
            found if found > MAX_AD_BYTES => Err(AdError::TooLarge { found }),
            _ => Ok(signed),
        }
    }

    /// The bytes that travel.
    pub fn encode(&self) -> Result<Vec<u8>, AdError> {
        codec::encode(self).map_err(AdError::Encoding)
    }

    /// Reads the envelope; the ad inside is looked at by [`SignedAd::claims`] or [`SignedAd::verify`].
    pub fn decode(bytes: &[u8]) -> Result<Self, AdError> {
        if bytes.len() > MAX_AD_BYTES {
            return Err(AdError::TooLarge { found: bytes.len() });
        }
        codec::decode::<_, MAX_AD_BYTES>(bytes).map_err(AdError::Encoding)
    }

    /// The ad with its bounds checked, but **not** its signature: enough to find out cheaply that it is
    /// late, stale or for somebody else.
    pub fn claims(&self) -> Result<Ad, AdError> {
        let ad: Ad = codec::decode::<_, MAX_AD_BYTES>(&self.ad).map_err(AdError::Encoding)?;
        ad.validate()?;
        Ok(ad)
    }

    /// Everything: bounds, network, clock, key and signature. `now` is unix seconds.
    pub fn verify(&self, network_id: &[u8; 32], now: u64) -> Result<Ad, AdError> {
        let ad = self.claims()?;
        ad.check_time_and_network(network_id, now)?;
        self.check_signature(&ad)?;
        Ok(ad)
    }

    /// That the ad's own peer signed these bytes.
    pub(crate) fn check_signature(&self, ad: &Ad) -> Result<(), AdError> {
        let key = PublicKey::try_decode_protobuf(&self.public_key).map_err(|_| AdError::Key)?;
        if key.key_type() != KeyType::Ed25519 {
            return Err(AdError::Key);
        }
        let signer = PeerKey::from(key.to_peer_id());
        if ad.peer != signer {
            return Err(AdError::PeerMismatch { named: ad.peer.clone(), signer });
        }
        match key.verify(&message(&self.ad), &self.signature) {
            true => Ok(()),
            false => Err(AdError::Signature(signer)),
        }
    }
}

#[cfg(test)]
#[path = "signed_tests.rs"]
mod tests;
