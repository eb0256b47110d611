//! The handshake: from what a worker promises to an open session.

use std::collections::{BTreeMap, VecDeque};

use cocoon_attest::noise::{self, Initiator, Prologue};
use cocoon_payments::{NanoTon, SignedVoucher, lane::Payer};

use super::{Asker, Patience, SessionError, Terms};
use crate::session::{
    WIRE_VERSION,
    inner::{self, ToEnclave},
    meter::{Meter, Tariff},
    outer::{Accepted, Open},
};

/// A session whose handshake is on its way.
#[derive(Debug)]
pub struct Opening {
    initiator: Initiator,
    terms: Terms,
    payer: Payer,
    patience: Patience,
}

impl Opening {
    /// Begins a handshake; the frame is the first to send.
    pub fn start(
        crypto: noise::Crypto,
        terms: Terms,
        payer: Payer,
        patience: Patience,
    ) -> Result<(Self, Open), SessionError> {
        let prologue = Prologue {
            wire_version: WIRE_VERSION,
            network_id: terms.policy.network_id,
            evidence_digest: terms.verified.evidence_digest,
            policy: terms.policy.live.id(),
        };
        let key = terms.verified.claims.noise_key;
        let (initiator, noise) = Initiator::start(crypto, &prologue, &key)?;
        let open = Open {
            wire_version: prologue.wire_version,
            network_id: prologue.network_id,
            evidence_digest: prologue.evidence_digest,
            policy: prologue.policy,
            noise,
            channel: payer.params().encode(),
        };
        Ok((Self { initiator, terms, payer, patience }, open))
    }

    /// Completes the handshake with the host's answer.
    pub fn accepted(mut self, accepted: &Accepted, now_ms: u64) -> Result<Asker, SessionError> {
        let gap = self.reconcile(accepted.newest.as_ref())?;
        let channel = self.initiator.finish(&accepted.noise)?;
        let mut asker = Asker {
            handshake_hash: channel.handshake_hash(),
            channel,
            payer: self.payer,
            gap,
            welcome: None,
            live: self.terms.challenge.is_none(),
            opened_at: now_ms,
            meter: Meter::new(Tariff { price_input: 0, price_output: 0, quantum: self.terms.quantum }),
            terms: self.terms,
            patience: self.patience,
            next_stream: 1,
            streams: BTreeMap::new(),
            waiting: VecDeque::new(),
            outbox: inner::Batch::default(),
            events: VecDeque::new(),
        };
        if let Some(nonce) = asker.terms.challenge {
            asker.outbox.push(&ToEnclave::Challenge { nonce })?;
        }
        Ok(asker)
    }

    /// Brings our end of the channel up to what the worker holds. Returns what we have signed and
    /// the worker does not have: it was lost with an earlier connection and is still to be spent.
    fn reconcile(&mut self, newest: Option<&SignedVoucher>) -> Result<NanoTon, SessionError> {
        let held = match newest {
            None => NanoTon::ZERO,
            Some(newest) => {
                self.payer.adopt(newest).map_err(SessionError::Voucher)?;
                newest.voucher.cumulative
            }
        };
        Ok(self.payer.cumulative().saturating_sub(held))
    }
}
