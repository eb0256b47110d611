//! The hashes of this crate, each over the concatenation of its parts.
//!
//! Callers make concatenations unambiguous: every part has a fixed size, or its length goes in too.

use ring::digest::{self, Algorithm, Context};

pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    digest_of(&digest::SHA256, parts)
}

pub(crate) fn sha384(parts: &[&[u8]]) -> [u8; 48] {
    digest_of(&digest::SHA384, parts)
}

pub(crate) fn sha512(parts: &[&[u8]]) -> [u8; 64] {
    digest_of(&digest::SHA512, parts)
}

fn digest_of<const N: usize>(algorithm: &'static Algorithm, parts: &[&[u8]]) -> [u8; N] {
    let mut context = Context::new(algorithm);
    for part in parts {
        context.update(part);
    }
    into_array(context)
}

/// `N` is the algorithm's own output length at every call in this crate.
pub(crate) fn into_array<const N: usize>(context: Context) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(context.finish().as_ref());
    out
}
