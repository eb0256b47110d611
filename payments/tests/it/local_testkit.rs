//! A chain in a temporary directory with its own clock, and wallets.

use std::path::Path;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use cocoon_payments::{
    Address, NanoTon,
    local::{BlockInfo, LocalChain, toncenter},
};
use ed25519_dalek::SigningKey;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonlib_core::{
    TonAddress, TonHash,
    cell::Cell,
    message::{CommonMsgInfo, InternalMessage, TonMessage as _, TransferMessage},
    tlb_types::tlb::TLB as _,
    wallet::{mnemonic::KeyPair, ton_wallet::TonWallet, wallet_version::WalletVersion},
};

/// 2026-05-28, as in the vectors.
pub const START: u32 = 1_780_000_000;

pub struct Harness {
    pub chain: LocalChain,
    pub now: u32,
    dir: TempDir,
}

impl Harness {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let chain = LocalChain::create(dir.path(), START).unwrap();
        Self { chain, now: START, dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn close(self) -> TempDir {
        drop(self.chain);
        self.dir
    }

    pub fn reopen(self) -> Self {
        let now = self.now;
        let dir = self.close();
        let chain = LocalChain::open(dir.path()).unwrap();
        Self { chain, now, dir }
    }

    /// The next block, a second later.
    pub fn block(&mut self) -> BlockInfo {
        self.now += 1;
        self.chain.produce_block(self.now).unwrap()
    }

    pub fn call(&self, method: &str, params: Value) -> Value {
        toncenter(&self.chain, method, &params).unwrap()
    }

    pub fn refusal(&self, method: &str, params: Value) -> (u16, String) {
        let error = toncenter(&self.chain, method, &params).unwrap_err();
        (error.code, error.message)
    }

    pub fn balance(&self, address: &Address) -> u64 {
        balance(&self.chain, address)
    }

    pub fn state(&self, address: &Address) -> String {
        self.call("getAddressState", json!({ "address": address.to_string() })).as_str().unwrap().to_owned()
    }

    pub fn fund(&mut self, address: &Address, nanoton: u64) {
        self.chain.faucet(address, NanoTon(nanoton)).unwrap();
        self.block();
    }
}

pub fn balance(chain: &LocalChain, address: &Address) -> u64 {
    let balance = toncenter(chain, "getAddressBalance", &json!({ "address": address.to_string() })).unwrap();
    balance.as_str().unwrap().parse().unwrap()
}

/// Everything that left the books at an account: fees of its transactions and the fees that travelled
/// with the messages it sent.
pub fn transfers_total(chain: &LocalChain, address: &Address) -> u64 {
    let mut total = 0;
    let mut params = json!({ "address": address.to_string(), "limit": 256 });
    loop {
        let page = toncenter(chain, "getTransactions", &params).unwrap();
        let page = page.as_array().unwrap();
        for transaction in page {
            total += transaction["fee"].as_str().unwrap().parse::<u64>().unwrap();
        }
        let Some(last) = page.last().filter(|_| page.len() == 256) else { return total };
        let lt: u64 = last["transaction_id"]["lt"].as_str().unwrap().parse().unwrap();
        params["lt"] = json!((lt - 1).to_string());
    }
}

/// A v5r1 wallet built by tonlib-core.
pub struct TestWallet(TonWallet);

impl TestWallet {
    pub fn new(seed: u8) -> Self {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let pair = KeyPair {
            public_key: key.verifying_key().to_bytes().to_vec(),
            secret_key: key.to_keypair_bytes().to_vec(),
        };
        Self(TonWallet::new(WalletVersion::V5R1, pair).unwrap())
    }

    pub fn address(&self) -> Address {
        self.0.address.to_hex().parse().unwrap()
    }

    /// A signed external message, with the wallet's code the first time.
    pub fn transfer(&self, seqno: u32, valid_until: u32, to: &Address, nanoton: u64) -> Vec<u8> {
        let body = self.signed_body(seqno, valid_until, to, nanoton);
        self.0.wrap_signed_body(body, seqno == 0).unwrap().to_boc(false).unwrap()
    }

    /// The body of [`Self::transfer`].
    pub fn signed_body(&self, seqno: u32, valid_until: u32, to: &Address, nanoton: u64) -> Cell {
        let to = TonAddress::new(i32::from(to.workchain), TonHash::from(to.hash));
        let info = InternalMessage {
            ihr_disabled: true,
            bounce: false,
            bounced: false,
            src: TonAddress::NULL,
            dest: to,
            value: nanoton.into(),
            ihr_fee: 0u8.into(),
            fwd_fee: 0u8.into(),
            created_lt: 0,
            created_at: 0,
        };
        let body = Cell::default().to_arc();
        let message = TransferMessage::new(CommonMsgInfo::InternalMessage(info), body).build().unwrap();
        let body = self.0.create_external_body(valid_until, seqno, [message.to_arc()]).unwrap();
        self.0.sign_external_body(&body).unwrap()
    }
}

pub fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}
