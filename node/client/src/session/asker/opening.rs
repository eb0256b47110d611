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
        let mut open = Open {
            wire_version: prologue.wire_version,
            network_id: prologue.network_id,
            evidence_digest: prologue.evidence_digest,
            policy: prologue.policy,
            noise,
            channel: payer.params().encode(),
            proof: [0; 64],
        };
        open.proof = payer.sign_session(&open.statement(&terms.worker, &payer.address()));
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
    ///
    /// What the chain has paid the worker had, even if it shows no voucher for it (its disk was lost):
    /// it credits nothing below that again, so nothing below it is left to spend.
    fn reconcile(&mut self, newest: Option<&SignedVoucher>) -> Result<NanoTon, SessionError> {
        let held = match newest {
            None => NanoTon::ZERO,
            Some(newest) => {
                self.payer.adopt(newest).map_err(SessionError::Voucher)?;
                newest.voucher.cumulative
            }
        };
        let held = held.max(self.payer.settled());
        Ok(self.payer.cumulative().saturating_sub(held))
    }
}

#[cfg(test)]
mod tests {
    use cocoon_payments::{
        channel::{ChannelParams, OnChain, Stage},
        lane::verify_session,
    };

    use super::*;
    use crate::session::testkit::{PAIR, payer};

    fn opening(payer: Payer) -> (Opening, Open) {
        Opening::start(noise::default_crypto, PAIR.terms.clone(), payer, Patience::default()).unwrap()
    }

    #[test]
    fn an_open_proves_that_its_sender_holds_the_channels_key() {
        let (_, open) = opening(payer(1_000));
        let params = ChannelParams::decode(&open.channel).unwrap();
        let address = params.address().unwrap();
        let checked = |worker: &[u8]| {
            verify_session(&params.client_key, &open.statement(worker, &address), &open.proof)
        };
        assert_eq!(checked(&PAIR.terms.worker), Ok(()));
        assert!(checked(&[8; 38]).is_err(), "it opens nothing at another worker");
        let (_, again) = opening(payer(1_000));
        assert_ne!(again.handshake(), open.handshake(), "every session has a handshake of its own");
    }

    #[test]
    fn what_the_chain_has_paid_is_not_spent_again() {
        let settled = |amount| OnChain {
            stage: Stage::Open,
            balance: NanoTon(1_000_000_000),
            settled: NanoTon(amount),
            expire_at: u32::MAX,
            read_at: 0,
        };
        // The worker lost its disk; the chain has paid it 700 of the 1000 that were signed.
        let mut paying = payer(1_000_000);
        let held = paying.pay(NanoTon(600)).unwrap();
        paying.pay(NanoTon(400)).unwrap();
        paying.observe(&settled(700));
        let (mut opening, _) = opening(paying);
        assert_eq!(opening.reconcile(None), Ok(NanoTon(300)));
        assert_eq!(opening.reconcile(Some(&held)), Ok(NanoTon(300)));
        opening.payer.observe(&settled(0));
        assert_eq!(opening.reconcile(Some(&held)), Ok(NanoTon(300)), "a lagging endpoint changes nothing");
    }
}
