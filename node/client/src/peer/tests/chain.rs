//! A chain of one wallet: it takes every transfer, and every contract deployed by one is open.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use cocoon_payments::{
    Address, NanoTon,
    cell::{self, ArcCell, CellBuilder},
    chain::{
        AccountState, AccountStatus, BoxFuture, Chain, ChainError, ChainIdentity, GetMethodResult, Head,
        StackValue, TransactionInfo,
    },
};

use crate::peer::unix_now;

#[derive(Debug)]
pub(super) struct TestChain {
    pub(super) identity: ChainIdentity,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    wallet: Address,
    balance: NanoTon,
    seqno: u32,
    /// Contracts are not found, as by an endpoint that lags behind.
    hidden: bool,
    /// Every cell ever sent, by hash: a contract's address is the hash of its state init.
    cells: BTreeMap<[u8; 32], ArcCell>,
}

impl TestChain {
    pub(super) fn new(identity: ChainIdentity, wallet: Address, balance: NanoTon) -> Self {
        let state = State { wallet, balance, seqno: 0, hidden: false, cells: BTreeMap::new() };
        Self { identity, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn hide(&self, hidden: bool) {
        self.state().hidden = hidden;
    }

    pub(super) fn transfers(&self) -> u32 {
        self.state().seqno
    }
}

impl State {
    fn learn(&mut self, cell: &ArcCell) {
        self.cells.insert(cell::hash(cell), cell.clone());
        for child in cell.references() {
            self.learn(child);
        }
    }

    fn account(&self, address: &Address) -> AccountState {
        let mut account = AccountState {
            balance: NanoTon::ZERO,
            status: AccountStatus::Absent,
            code: None,
            data: None,
            last_lt: 0,
            last_hash: [0; 32],
            unixtime: unix_now(),
        };
        if *address == self.wallet {
            account.balance = self.balance;
            if self.seqno > 0 {
                let mut data = CellBuilder::new();
                data.store_bit(true).unwrap().store_u32(32, self.seqno).unwrap();
                account.status = AccountStatus::Active;
                account.data = Some(cell::to_boc(&data.build().unwrap().to_arc()).unwrap());
            }
        } else if let Some(init) = self.cells.get(&address.hash).filter(|_| !self.hidden) {
            account.balance = NanoTon(1_000_000_000);
            account.status = AccountStatus::Active;
            account.code = Some(cell::to_boc(&init.references()[0]).unwrap());
            account.data = Some(cell::to_boc(&opened(&init.references()[1])).unwrap());
        }
        account
    }
}

/// The channel's initial data with its first bit, `opened`, set.
fn opened(data: &ArcCell) -> ArcCell {
    let mut parser = data.parser();
    let mut open = CellBuilder::new();
    parser.load_bit().unwrap();
    open.store_bit(true).unwrap();
    while parser.remaining_bits() > 0 {
        open.store_bit(parser.load_bit().unwrap()).unwrap();
    }
    for child in data.references() {
        open.store_reference(child).unwrap();
    }
    open.build().unwrap().to_arc()
}

fn ready<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, Result<T, ChainError>> {
    Box::pin(async { Ok(value) })
}

impl Chain for TestChain {
    fn identity(&self) -> BoxFuture<'_, Result<ChainIdentity, ChainError>> {
        ready(self.identity)
    }

    fn head(&self) -> BoxFuture<'_, Result<Head, ChainError>> {
        ready(Head { seqno: 1, hash: [1; 32], unixtime: unix_now() })
    }

    fn account<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<AccountState, ChainError>> {
        ready(self.state().account(address))
    }

    fn run_get_method<'a>(
        &'a self,
        _: &'a Address,
        _: &'a str,
        _: &'a [StackValue],
    ) -> BoxFuture<'a, Result<GetMethodResult, ChainError>> {
        ready(GetMethodResult { exit_code: 11, gas_used: 0, stack: Vec::new() })
    }

    fn send<'a>(&'a self, boc: &'a [u8]) -> BoxFuture<'a, Result<[u8; 32], ChainError>> {
        let mut state = self.state();
        state.learn(&cell::parse(boc).unwrap());
        state.seqno += 1;
        ready([0; 32])
    }

    fn transactions<'a>(
        &'a self,
        _: &'a Address,
        _: usize,
    ) -> BoxFuture<'a, Result<Vec<TransactionInfo>, ChainError>> {
        ready(Vec::new())
    }
}
