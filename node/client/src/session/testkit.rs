//! A worker in memory: the host's and the enclave's side of a session without sockets, disk or
//! engine, for tests of the asker's machine.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use cocoon_attest::{
    Assurance, Beacon, Claims, Evidence, Expect, Live, Measurement, Policy, Quoter, Role, Verified,
    live::Batcher,
    noise::{self, Channel, Prologue, StaticKey},
    software_tee::Platform,
    verify,
};
use cocoon_inference::{
    AnswerForm, ChatRole, FinishReason, GenerateRequest, Message, Sampling, Token, Usage,
};
use cocoon_payments::{
    Address, NanoTon, Receipt, SignedVoucher,
    channel::ChannelParams,
    lane::{Payer, verify_session},
};
use ed25519_dalek::SigningKey;

use super::{
    WIRE_VERSION,
    asker::{Ask, Asker, Opening, Patience, SessionError, Terms, Transmit},
    inner::{self, FailCode, ToAsker, ToEnclave, Welcome},
    meter::{Bill, Limits, Meter, Tariff},
    outer::{Accepted, Open, ToClient},
};

pub(crate) const NOW: u64 = 1_795_000_000;
pub(crate) const MODEL: [u8; 32] = [7; 32];
pub(crate) const NETWORK: [u8; 32] = [1; 32];
pub(crate) const WORKER: [u8; 38] = [9; 38];
pub(crate) const TARIFF: Tariff =
    Tariff { price_input: 1_000_000, price_output: 2_000_000, quantum: NanoTon(16) };
pub(crate) const IMAGE: Measurement = Measurement([5; 48]);
pub(crate) const CONFIG: [u8; 32] = [6; 32];
const GLOBAL_ID: i32 = -217;

/// One pair for tests that change nothing about it: evidence takes a while to make and verify.
pub(crate) static PAIR: LazyLock<Pair> = LazyLock::new(Pair::new);

static PLATFORM: LazyLock<Platform> = LazyLock::new(|| Platform::generate(NOW).unwrap());

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

/// What the asker knows of one worker, and what the worker keeps for itself.
pub(crate) struct Pair {
    pub(crate) terms: Terms,
    pub(crate) evidence: Vec<u8>,
    pub(crate) noise_key: StaticKey,
}

impl Pair {
    pub(crate) fn new() -> Self {
        Self::of(&PLATFORM, NETWORK, WORKER.to_vec(), IMAGE, NOW)
    }

    /// A worker on a platform, in a network, with a peer id.
    pub(crate) fn of(
        platform: &Platform,
        network_id: [u8; 32],
        worker: Vec<u8>,
        image: Measurement,
        now: u64,
    ) -> Self {
        let noise_key = StaticKey::generate().unwrap();
        let claims = Claims {
            network_id,
            role: Role::Worker,
            noise_key: noise_key.public(),
            receipt_key: key(3).verifying_key().to_bytes(),
            peer_id: worker.clone(),
            image,
            config_digest: CONFIG,
            model_digest: MODEL,
            gpu_evidence: None,
            not_before: now - 60,
            not_after: now + 3600,
            beacon: Beacon { seqno: 8, hash: [8; 32] },
        };
        let tee = platform.quoter(image);
        let evidence = Evidence {
            claims: claims.encode(),
            quote: tee.quote(&claims.report_data()).unwrap(),
            collateral: tee.collateral().unwrap(),
        };
        let policy = Policy {
            network_id,
            roots: vec![platform.trust_root()],
            minimum: Assurance::Test,
            measurements: [image].into(),
            config_digests: [CONFIG].into(),
            model_digests: [MODEL].into(),
            min_tcb_evaluation: 0,
            clock_skew_s: 60,
            live: Live::FirstUse,
        };
        let bytes = evidence.encode();
        let expect = Expect { peer_id: &worker, model_digest: Some(MODEL), evidence_digest: None };
        let verified: Verified = verify(&bytes, &expect, &policy, now).unwrap();
        let terms = Terms {
            verified: Arc::new(verified),
            collateral: evidence.collateral.into(),
            policy: Arc::new(policy),
            challenge: None,
            worker,
            model: MODEL,
            price_input: TARIFF.price_input,
            price_output: TARIFF.price_output,
            quantum: TARIFF.quantum,
        };
        Self { terms, evidence: bytes, noise_key }
    }

    /// Shakes hands; the welcome is still on its way.
    pub(crate) fn connect(&self, payer: Payer, newest: Option<SignedVoucher>) -> (Asker, Worker) {
        self.try_connect(payer, newest).unwrap()
    }

    pub(crate) fn try_connect(
        &self,
        payer: Payer,
        newest: Option<SignedVoucher>,
    ) -> Result<(Asker, Worker), SessionError> {
        let (opening, open) =
            Opening::start(noise::default_crypto, self.terms.clone(), payer, Patience::default())?;
        let (worker, accepted) = Worker::accept(&open, self, newest);
        Ok((opening.accepted(&accepted, 0)?, worker))
    }
}

/// The asker's end of a channel with this much to spend.
pub(crate) fn payer(spendable: u64) -> Payer {
    let params = ChannelParams {
        client: Address::base([0xc1; 32]),
        worker: Address::base([0x33; 32]),
        client_key: key(1).verifying_key().to_bytes(),
        worker_key: key(2).verifying_key().to_bytes(),
        channel_id: 7,
        close_delay_s: 3600,
        open_by: 1_790_000_600,
        expire_at: 1_800_000_000,
    };
    // Reserve and headroom are not spendable.
    let deposit = NanoTon(11_000_000 + spendable);
    Payer::new(params, GLOBAL_ID, key(1), deposit).unwrap()
}

/// A request whose "prompt" has `input` tokens and whose answer has at most `max_tokens`.
pub(crate) fn ask(input: usize, max_tokens: Option<u32>, max_cost: u64) -> Ask {
    Ask {
        request: GenerateRequest::new(
            MODEL,
            vec![Message::new(ChatRole::User, "x".repeat(input))],
            Sampling { max_tokens, ..Sampling::default() },
        ),
        max_cost: NanoTon(max_cost),
    }
}

#[derive(Debug)]
struct Job {
    input_tokens: u32,
    start: u32,
    made: u32,
}

/// Host and enclave in one.
pub(crate) struct Worker {
    pub(crate) channel: Channel,
    pub(crate) meter: Meter,
    pub(crate) newest: Option<SignedVoucher>,
    pub(crate) vouchers: usize,
    /// What the enclave says next; tests may add lies.
    pub(crate) batch: inner::Batch,
    /// Changes each receipt before it is signed.
    pub(crate) tamper: fn(&mut Receipt),
    client_key: [u8; 32],
    pub(crate) address: Address,
    peer_id: Vec<u8>,
    batcher: Batcher,
    jobs: BTreeMap<u32, Job>,
    pub(crate) requests: usize,
    live: bool,
}

impl Worker {
    pub(crate) fn accept(open: &Open, pair: &Pair, newest: Option<SignedVoucher>) -> (Self, Accepted) {
        let noise_key = &pair.noise_key;
        let prologue = Prologue {
            wire_version: WIRE_VERSION,
            network_id: open.network_id,
            evidence_digest: open.evidence_digest,
            policy: open.policy,
        };
        let (channel, noise) =
            noise::respond(noise::default_crypto, noise_key, &prologue, &open.noise).unwrap();
        let params = ChannelParams::decode(&open.channel).unwrap();
        let address = params.address().unwrap();
        let statement = open.statement(&pair.terms.worker, &address);
        verify_session(&params.client_key, &statement, &open.proof).unwrap();
        let mut worker = Self {
            channel,
            meter: Meter::new(TARIFF),
            newest,
            vouchers: 0,
            batch: inner::Batch::default(),
            tamper: |_| {},
            client_key: params.client_key,
            address,
            peer_id: pair.terms.worker.clone(),
            batcher: Batcher::new(Role::Worker, noise_key.public()),
            jobs: BTreeMap::new(),
            requests: 0,
            live: false,
        };
        worker.say(ToAsker::Welcome(worker.welcome()));
        (worker, Accepted { noise, newest })
    }

    pub(crate) fn welcome(&self) -> Welcome {
        Welcome {
            price_input: TARIFF.price_input,
            price_output: TARIFF.price_output,
            quantum: TARIFF.quantum.0,
            model: MODEL,
            context: 4096,
            receipt_key: key(3).verifying_key().to_bytes(),
        }
    }

    pub(crate) fn say(&mut self, message: ToAsker) {
        self.batch.push(&message).unwrap();
    }

    /// Takes what the asker sends. Panics on what an honest asker never sends.
    pub(crate) fn take(&mut self, transmit: Transmit) {
        match transmit {
            Transmit::Voucher(voucher) => {
                voucher.signed.verify_strict(&self.client_key).unwrap();
                let before = self.newest.map_or(0, |newest| newest.voucher.cumulative.0);
                let delta = voucher.signed.voucher.cumulative.0.checked_sub(before).unwrap();
                assert_eq!(delta, voucher.allocations.iter().map(|(_, amount)| amount).sum::<u64>());
                self.newest = Some(voucher.signed);
                self.vouchers += 1;
                for (stream, amount) in voucher.allocations {
                    self.meter.credit(stream, NanoTon(amount)).unwrap();
                }
            }
            Transmit::Record(record) => {
                let plain = self.channel.open(&record).unwrap();
                for message in inner::decode::<ToEnclave>(&plain).unwrap() {
                    self.hear(message);
                }
            }
        }
    }

    fn hear(&mut self, message: ToEnclave) {
        match message {
            ToEnclave::Challenge { nonce } => {
                self.batcher.push(1, &self.channel.handshake_hash(), &nonce).unwrap();
                self.live = true;
            }
            ToEnclave::Request { stream, request, max_cost } => {
                self.requests += 1;
                let prefix = u32::try_from(request.prefix.len()).unwrap();
                let text: usize = request.messages.iter().map(|message| message.content.len()).sum();
                let input_tokens = u32::try_from(text).unwrap() + prefix;
                let max_tokens = request.sampling.max_tokens.map(|max| max - prefix);
                let limits = Limits { max_cost: NanoTon(max_cost), max_tokens };
                self.meter.open(stream, limits).unwrap();
                match self.meter.quote(stream, input_tokens) {
                    Ok(cost) => {
                        self.jobs.insert(stream, Job { input_tokens, start: prefix, made: 0 });
                        self.say(ToAsker::Quoted {
                            stream,
                            input_tokens,
                            input_cost: cost.0,
                            form: AnswerForm::default(),
                        });
                    }
                    Err(error) => {
                        self.meter.fail(stream).unwrap();
                        let needed = u64::from(input_tokens);
                        let code = FailCode::Ceiling { needed };
                        self.say(ToAsker::Failed { stream, code, message: error.to_string() });
                    }
                }
            }
            ToEnclave::Cancel { stream } => self.finish(stream, FinishReason::Cancelled),
        }
    }

    /// Answers a challenge, if one was made.
    pub(crate) fn prove_live(&mut self) {
        self.prove_live_on(&PLATFORM, IMAGE);
    }

    pub(crate) fn prove_live_on(&mut self, platform: &Platform, image: Measurement) {
        if std::mem::take(&mut self.live) {
            let report = self.batcher.start().unwrap();
            let quote = platform.quoter(image).quote(&report).unwrap();
            for (_, proof) in self.batcher.finish(&quote) {
                self.say(ToAsker::Live(proof.encode()));
            }
        }
    }

    pub(crate) fn streams(&self) -> Vec<u32> {
        self.jobs.keys().copied().collect()
    }

    /// Lets one stream generate up to `want` tokens, as far as they are paid. Token `i` of an
    /// answer is `i`. Returns how many were made.
    pub(crate) fn generate(&mut self, stream: u32, want: u32) -> u32 {
        let Some(job) = self.jobs.get_mut(&stream) else { return 0 };
        if self.meter.start(stream).is_err() {
            return 0;
        }
        let may = self.meter.affordable(stream).unwrap() - job.made;
        let count = want.min(may);
        if count > 0 {
            let start = job.start + job.made;
            let token = |id| Token::new(id, format!("{id} "));
            let tokens = (start..start + count).map(token).collect();
            job.made += count;
            self.meter.release(stream, count).unwrap();
            self.say(ToAsker::Tokens { stream, start, tokens });
        }
        count
    }

    /// Whether the request's own limits end it here.
    pub(crate) fn is_complete(&self, stream: u32) -> bool {
        self.jobs.get(&stream).is_some_and(|job| self.meter.ceiling_tokens(stream).unwrap() == job.made)
    }

    pub(crate) fn finish(&mut self, stream: u32, reason: FinishReason) {
        let Some(job) = self.jobs.remove(&stream) else { return };
        let bill: Bill = self.meter.finish(stream).unwrap();
        let mut receipt = Receipt {
            session: self.channel.handshake_hash(),
            stream,
            worker: self.peer_id.clone(),
            model: MODEL,
            channel: Some(self.address),
            input_tokens: bill.input_tokens,
            output_tokens: bill.output_tokens,
            price_input: TARIFF.price_input,
            price_output: TARIFF.price_output,
            cost: bill.cost,
            paid: bill.paid,
            finished_at: NOW,
        };
        (self.tamper)(&mut receipt);
        self.say(ToAsker::Finished {
            stream,
            reason,
            text: String::new(),
            usage: Usage { prompt_tokens: job.input_tokens, cached_tokens: 0, completion_tokens: job.made },
            receipt: Box::new(receipt.sign(&key(3))),
        });
    }

    /// What the enclave has to say, sealed.
    pub(crate) fn flush(&mut self) -> Vec<ToClient> {
        let records = self.batch.take();
        records
            .iter()
            .map(|record| ToClient::Noise(Bytes::from(self.channel.seal(record).unwrap())))
            .collect()
    }
}

/// Moves everything both ways until nothing moves.
pub(crate) fn settle(asker: &mut Asker, worker: &mut Worker, now_ms: u64) -> Result<(), SessionError> {
    loop {
        let mut out = Vec::new();
        asker.transmit(&mut out, now_ms)?;
        let up = out.len();
        out.into_iter().for_each(|transmit| worker.take(transmit));
        let down = worker.flush();
        if up == 0 && down.is_empty() {
            return Ok(());
        }
        for frame in down {
            asker.on_frame(frame, now_ms, NOW)?;
        }
    }
}
