//! What a peer knows about workers, and what it does with that knowledge.
//!
//! Everything here is sans-IO: no socket, no clock, no entropy source. Callers pass `now` and a random
//! number generator, so that the same code runs under the swarm actor, under property tests and under
//! the simulator. Tables are ordered and bounded; a stranger can fill them, never grow them.
//!
//! | part | question it answers |
//! |---|---|
//! | [`Ad`], [`SignedAd`] | what does a worker claim, and did it really say so? |
//! | [`Directory`] | which claims are current? |
//! | [`History`] | what did *we* experience with this worker? |
//! | [`choose()`] | which worker should serve this request? |
//! | [`Admission`] | may this asker open a session here, now? |
//! | [`Standing`] | should we still listen to this peer at all? |

mod ad;
mod admission;
mod bucket;
mod choose;
mod directory;
mod history;
mod place;
mod signed;
mod standing;
#[cfg(test)]
mod testkit;

pub use ad::{
    Ad, AdError, MAX_AD_BYTES, MAX_AD_LIFETIME_S, MAX_ADDRESS_BYTES, MAX_ADDRESSES, MAX_CLOCK_SKEW_S,
    MAX_CLOSE_DELAY_S, MAX_MODELS, MAX_NAME_BYTES, MAX_PRICE, MAX_QUEUE_DELAY_MS, ModelOffer, PeerKey,
};
pub use admission::{Admission, AdmissionLimits, AskerId, Effect, Input, Refusal, SessionId};
pub use bucket::{Rate, TokenBucket};
pub use choose::{Ask, Candidate, NoCandidate, Rejections, SHORTLIST, choose};
pub use directory::{ANNOUNCE_RATE, Directory, DirectoryLimits, Inserted, ModelView};
pub use history::{History, Outcome};
pub use place::Prefix;
pub use signed::SignedAd;
pub use standing::{BAN_POINTS, BAN_S, Offence, Standing, Verdict};
