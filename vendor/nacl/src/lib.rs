//! The part of `nacl`'s interface that tonlib-core uses. See this package's `Cargo.toml` for why.

/// Signatures (ed25519).
pub mod sign {
    use std::fmt;

    use ed25519_dalek::{Signer, SigningKey};

    /// A key pair in NaCl's layout.
    pub struct Keypair {
        /// Seed, then public key.
        pub skey: [u8; 64],
        /// Public key.
        pub pkey: [u8; 32],
    }

    impl fmt::Debug for Keypair {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Keypair").field("pkey", &self.pkey).finish_non_exhaustive()
        }
    }

    /// Why nothing was signed.
    #[derive(Debug)]
    pub struct Error {
        /// In words.
        pub message: String,
    }

    /// The key pair of a seed.
    ///
    /// # Panics
    /// If the seed is not 32 bytes long, as the crate that this one stands in for.
    pub fn generate_keypair(seed: &[u8]) -> Keypair {
        let Ok(seed) = <[u8; 32]>::try_from(seed) else { panic!("a seed has 32 bytes, not {}", seed.len()) };
        let key = SigningKey::from_bytes(&seed);
        Keypair { skey: key.to_keypair_bytes(), pkey: key.verifying_key().to_bytes() }
    }

    /// A detached signature of 64 bytes.
    pub fn signature(message: &[u8], secret: &[u8]) -> Result<Vec<u8>, Error> {
        let bad = |what: String| Error { message: format!("the secret key is not usable: {what}") };
        let pair = <[u8; 64]>::try_from(secret).map_err(|_| bad(format!("{} bytes", secret.len())))?;
        let key = SigningKey::from_keypair_bytes(&pair).map_err(|error| bad(error.to_string()))?;
        Ok(key.sign(message).to_bytes().to_vec())
    }
}
