//! A cipher that does not encrypt, for one purpose: to show that the capture test can see plaintext at all.
//!
//! It exists in this test-only crate and nowhere else. The `cocoon` binary has no way to choose it.

use snow::{
    Error,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::{CryptoResolver, DefaultResolver},
    types::{Cipher, Dh, Hash, Random},
};

/// Length of the tag that a real cipher would add.
const TAG: usize = 16;

/// The usual primitives, with a cipher that copies its input.
pub fn crypto() -> Box<dyn CryptoResolver + Send> {
    Box::new(NullResolver)
}

struct NullResolver;

impl CryptoResolver for NullResolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        DefaultResolver.resolve_rng()
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, _: &CipherChoice) -> Option<Box<dyn Cipher>> {
        Some(Box::new(NullCipher))
    }
}

struct NullCipher;

impl Cipher for NullCipher {
    fn name(&self) -> &'static str {
        "Null"
    }

    fn set(&mut self, _: &[u8; 32]) {}

    fn encrypt(&self, _: u64, _: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        out[..plaintext.len()].copy_from_slice(plaintext);
        out[plaintext.len()..plaintext.len() + TAG].fill(0);
        plaintext.len() + TAG
    }

    fn decrypt(&self, _: u64, _: &[u8], ciphertext: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let length = ciphertext.len().checked_sub(TAG).ok_or(Error::Decrypt)?;
        out[..length].copy_from_slice(&ciphertext[..length]);
        Ok(length)
    }
}
