//! A local chain with people on it.

use std::sync::Arc;

use cocoon_payments::{
    Address, NanoTon, SignedVoucher, Voucher,
    chain::{AccountState, Chain, Toncenter, TransactionInfo},
    channel::{self, ChannelParams, CloseAgreement, OnChain, SETTLE_VALUE, read_account},
    local::LocalChain,
    wallet::{Outgoing, Wallet},
};
use tempfile::TempDir;

use crate::{
    local_testkit::{START, balance, transfers_total},
    testkit::key,
};

pub const TON: u64 = 1_000_000_000;

/// Who sends something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Client,
    Stranger,
}

pub struct Network {
    pub chain: Arc<LocalChain>,
    pub api: Toncenter,
    pub now: u32,
    pub params: ChannelParams,
    client: (Wallet, u32),
    stranger: (Wallet, u32),
    granted: u64,
    _dir: TempDir,
}

/// Local answers are ready at once, so no reactor is needed.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

impl Network {
    /// Client and stranger own 100 TON each and deployed wallets; the worker owns an address.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let chain = Arc::new(LocalChain::create(dir.path(), START).unwrap());
        let global_id = chain.global_id();
        let wallet = |seed| (Wallet::from_key(key(seed), global_id).unwrap(), 0);
        let (client, stranger) = (wallet(11), wallet(12));
        let params = ChannelParams {
            client: client.0.address(),
            worker: Wallet::from_key(key(13), global_id).unwrap().address(),
            client_key: key(1).verifying_key().to_bytes(),
            worker_key: key(2).verifying_key().to_bytes(),
            channel_id: 7,
            close_delay_s: 3600,
            open_by: START + 600,
            expire_at: START + 86_400,
        };
        let api = Toncenter::embedded(chain.clone());
        let mut network = Self { chain, api, now: START, params, client, stranger, granted: 0, _dir: dir };
        for who in [Who::Client, Who::Stranger] {
            let address = network.wallet(who).address();
            network.chain.faucet(&address, NanoTon(100 * TON)).unwrap();
            network.granted += 100 * TON;
            network.block();
            network.send(who, &[]);
        }
        network
    }

    pub fn wallet(&self, who: Who) -> &Wallet {
        match who {
            Who::Client => &self.client.0,
            Who::Stranger => &self.stranger.0,
        }
    }

    pub fn block(&mut self) {
        self.now += 1;
        self.chain.produce_block(self.now).unwrap();
        while self.chain.undelivered().unwrap() > 0 {
            self.chain.produce_block(self.now).unwrap();
        }
    }

    /// One transfer, in one block.
    pub fn send(&mut self, who: Who, messages: &[Outgoing]) {
        let (wallet, seqno) = match who {
            Who::Client => &mut self.client,
            Who::Stranger => &mut self.stranger,
        };
        let transfer = wallet.transfer(*seqno, self.now + 60, messages).unwrap();
        *seqno += 1;
        self.chain.submit(&transfer.boc).unwrap();
        self.block();
    }

    pub fn address(&self) -> Address {
        self.params.address().unwrap()
    }

    /// Calls the channel; returns how its code ended (`None`: it did not run).
    pub fn call(&mut self, who: Who, value: u64, body: cocoon_payments::cell::ArcCell) -> Option<i32> {
        self.deliver(who, Outgoing::call(self.address(), NanoTon(value), body))
    }

    /// The same with the state init, which deploys the contract if it is not there.
    pub fn call_with_init(
        &mut self,
        who: Who,
        value: u64,
        body: cocoon_payments::cell::ArcCell,
    ) -> Option<i32> {
        let call = Outgoing::call(self.address(), NanoTon(value), body);
        let call = call.with_state_init(self.params.state_init().unwrap());
        self.deliver(who, call)
    }

    pub fn deliver(&mut self, who: Who, message: Outgoing) -> Option<i32> {
        let before = self.last().map(|last| last.lt);
        self.send(who, &[message]);
        let last = self.last().filter(|last| Some(last.lt) != before).expect("the message arrived");
        last.exit_code
    }

    pub fn open(&mut self, deposit: u64) -> Option<i32> {
        self.call_with_init(Who::Client, deposit, channel::open().unwrap())
    }

    pub fn settle(&mut self, signed: &SignedVoucher) -> Option<i32> {
        self.call(Who::Stranger, SETTLE_VALUE.0, channel::settle(signed).unwrap())
    }

    pub fn finalize(&mut self) -> Option<i32> {
        self.call(Who::Stranger, SETTLE_VALUE.0, channel::finalize().unwrap())
    }

    /// Like [`Self::coop_close`], where the channel may not exist.
    pub fn coop_close_quietly(&mut self, agreement: &CloseAgreement) {
        let [client, worker] = [key(1), key(2)].map(|key| agreement.sign(&key).unwrap());
        let body = channel::coop_close(agreement, &client, &worker).unwrap();
        self.send(Who::Stranger, &[Outgoing::call(self.address(), SETTLE_VALUE, body)]);
    }

    pub fn coop_close(&mut self, agreement: &CloseAgreement) -> Option<i32> {
        let [client, worker] = [key(1), key(2)].map(|key| agreement.sign(&key).unwrap());
        let body = channel::coop_close(agreement, &client, &worker).unwrap();
        self.call(Who::Stranger, SETTLE_VALUE.0, body)
    }

    pub fn voucher(&self, cumulative: u64) -> SignedVoucher {
        Voucher {
            global_id: self.chain.global_id(),
            channel: self.address(),
            channel_id: self.params.channel_id,
            cumulative: NanoTon(cumulative),
        }
        .sign(&key(1))
    }

    pub fn agreement(&self, cumulative: u64, deadline: u32) -> CloseAgreement {
        CloseAgreement {
            global_id: self.chain.global_id(),
            channel: self.address(),
            channel_id: self.params.channel_id,
            cumulative: NanoTon(cumulative),
            deadline,
        }
    }

    pub fn account(&self, address: &Address) -> AccountState {
        wait(self.api.account(address)).unwrap()
    }

    pub fn on_chain(&self) -> OnChain {
        read_account(&self.params, &self.account(&self.address())).unwrap()
    }

    pub fn balance(&self, address: &Address) -> u64 {
        balance(&self.chain, address)
    }

    /// What the worker was paid. Nobody else sends to its account, which never sends itself.
    pub fn paid(&self) -> u64 {
        self.balance(&self.params.worker)
    }

    pub fn channel_balance(&self) -> u64 {
        self.balance(&self.address())
    }

    /// The channel's newest transaction.
    pub fn last(&self) -> Option<TransactionInfo> {
        wait(self.api.transactions(&self.address(), 1)).unwrap().pop()
    }

    /// Every coin that the faucet granted is on an account or was paid as a fee.
    pub fn assert_conserved(&self) {
        let accounts =
            [self.client.0.address(), self.stranger.0.address(), self.params.worker, self.address()];
        let held: u64 = accounts.iter().map(|account| self.balance(account)).sum();
        let fees: u64 = accounts.iter().map(|account| transfers_total(&self.chain, account)).sum();
        assert_eq!(held + fees, self.granted, "held {held}, fees {fees}");
    }
}
