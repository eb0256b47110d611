//! Whose session it is: a channel's terms together with the proof that its key opens this very session.
//!
//! A channel has one session at a time, and a new one supersedes the old. So nothing that a stranger can say may
//! look like a new one. Two things could: an `open` made up from the channel's public terms, which the proof
//! rules out ([`Claim::verify`]), and one that was captured and is sent again, which [`Handshakes`] rules out.

use std::collections::VecDeque;

use cocoon_client::session::outer::{Open, RefusalCode};
use cocoon_payments::Address;
use cocoon_payments::channel::ChannelParams;
use cocoon_payments::lane::verify_session;

use super::money::Stop;

/// Handshakes remembered per channel. Only the channel's own key can add one, so nobody else can push one out,
/// and an asker that opens a session a minute is covered for hours: as long as evidence lasts.
const REMEMBERED: usize = 256;

/// A channel, and the handshake that its key signed for. There is no other way to get one.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) params: ChannelParams,
    pub(super) address: Address,
    pub(super) handshake: [u8; 32],
}

impl Claim {
    /// Checks that the holder of the channel's key opened this session at `worker`, which is this host.
    pub(super) fn verify(open: &Open, worker: &[u8]) -> Result<Self, Stop> {
        let terms = |error: &dyn ToString| Stop::new(RefusalCode::ChannelTerms, error.to_string());
        let params = ChannelParams::decode(&open.channel).map_err(|error| terms(&error))?;
        let address = params.address().map_err(|error| terms(&error))?;
        verify_session(&params.client_key, &open.statement(worker, &address), &open.proof).map_err(
            |error| Stop::new(RefusalCode::ChannelProof, format!("field `proof` of `open`: {error}")),
        )?;
        Ok(Self { params, address, handshake: open.handshake() })
    }
}

/// The handshakes that took a channel, newest last.
#[derive(Debug, Default)]
pub(super) struct Handshakes(VecDeque<[u8; 32]>);

impl Handshakes {
    /// Refuses one that took the channel before: a session is opened once.
    pub(super) fn check(&self, handshake: &[u8; 32]) -> Result<(), Stop> {
        if self.0.contains(handshake) {
            let why = "this session was opened before; open another with a new handshake";
            return Err(Stop::new(RefusalCode::ChannelProof, why));
        }
        Ok(())
    }

    /// Remembers one.
    pub(super) fn add(&mut self, handshake: [u8; 32]) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(handshake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_and_the_newest_stay() {
        let mut seen = Handshakes::default();
        let name = |n: usize| {
            let mut name = [0; 32];
            name[..8].copy_from_slice(&n.to_be_bytes());
            name
        };
        for n in 0..=REMEMBERED {
            seen.check(&name(n)).unwrap();
            seen.add(name(n));
        }
        assert_eq!(seen.0.len(), REMEMBERED);
        assert!(seen.check(&name(0)).is_ok());
        assert_eq!(seen.check(&name(1)).unwrap_err().code, RefusalCode::ChannelProof);
        assert!(seen.check(&name(REMEMBERED)).is_err());
    }
}
