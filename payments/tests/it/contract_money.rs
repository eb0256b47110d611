//! Whatever is done to a channel, in whatever order: no coin is lost, the worker gets what the best
//! voucher says as far as the deposit goes and never more, and nothing stays behind.

use cocoon_payments::{
    NanoTon,
    channel::{self, SETTLE_VALUE, Stage},
    wallet::Outgoing,
};
use proptest::{collection::vec, prelude::*, test_runner::Config};

use crate::network::{Network, TON, Who};

#[derive(Clone, Debug)]
enum Op {
    Open { deposit: u64 },
    TopUp { value: u64, later: u32 },
    Plain { value: u64, init: bool },
    Sign { more: u64 },
    Settle { which: prop::sample::Index, init: bool },
    RequestClose,
    CoopClose { which: prop::sample::Index },
    Finalize { init: bool },
    Wait { seconds: u32 },
}

fn op() -> impl Strategy<Value = Op> {
    let value = || 1..4 * TON;
    prop_oneof![
        2 => value().prop_map(|deposit| Op::Open { deposit }),
        1 => (value(), 0..100_000u32).prop_map(|(value, later)| Op::TopUp { value, later }),
        1 => (value(), any::<bool>()).prop_map(|(value, init)| Op::Plain { value, init }),
        3 => (1..2 * TON).prop_map(|more| Op::Sign { more }),
        4 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(which, init)| Op::Settle { which, init }),
        1 => Just(Op::RequestClose),
        1 => any::<prop::sample::Index>().prop_map(|which| Op::CoopClose { which }),
        1 => any::<bool>().prop_map(|init| Op::Finalize { init }),
        2 => prop_oneof![1..500u32, 600..5_000u32, 80_000..90_000u32].prop_map(|seconds| Op::Wait { seconds }),
    ]
}

struct Model {
    network: Network,
    vouchers: Vec<u64>,
    /// Forward fees make what arrives at the worker less than what left the deposit, by this at most.
    payments: u64,
}

/// Fees of one message, at the local chain's prices, with room.
const MESSAGE_FEE: u64 = TON / 1000;

impl Model {
    fn call(&mut self, who: Who, value: u64, body: cocoon_payments::cell::ArcCell, init: bool) {
        let mut call = Outgoing::call(self.network.address(), NanoTon(value), body);
        if init {
            call = call.with_state_init(self.network.params.state_init().unwrap());
        }
        self.network.send(who, &[call]);
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Open { deposit } => self.call(Who::Client, *deposit, channel::open().unwrap(), true),
            Op::TopUp { value, later } => {
                let expire_at = self.network.params.expire_at + later;
                self.call(Who::Client, *value, channel::top_up(expire_at).unwrap(), false);
            }
            Op::Plain { value, init } => {
                let mut payment = Outgoing::payment(self.network.address(), NanoTon(*value));
                if *init {
                    payment = payment.with_state_init(self.network.params.state_init().unwrap());
                }
                self.network.send(Who::Stranger, &[payment]);
            }
            Op::Sign { more } => {
                let best = self.vouchers.last().copied().unwrap_or_default();
                self.vouchers.push(best + more);
            }
            Op::Settle { which, init } => {
                if !self.vouchers.is_empty() {
                    let voucher = self.network.voucher(*which.get(&self.vouchers));
                    let body = channel::settle(&voucher).unwrap();
                    self.call(Who::Stranger, SETTLE_VALUE.0, body, *init);
                    self.payments += 1;
                }
            }
            Op::RequestClose => {
                self.call(Who::Client, SETTLE_VALUE.0, channel::request_close().unwrap(), false);
            }
            Op::CoopClose { which } => {
                // An honest worker agrees to no less than its best voucher.
                if !self.vouchers.is_empty() {
                    let best = self.vouchers[self.vouchers.len() - 1].max(*which.get(&self.vouchers));
                    let agreement = self.network.agreement(best, self.network.now + 60);
                    self.network.coop_close_quietly(&agreement);
                    self.payments += 1;
                }
            }
            Op::Finalize { init } => {
                self.call(Who::Stranger, SETTLE_VALUE.0, channel::finalize().unwrap(), *init);
            }
            Op::Wait { seconds } => self.network.now += seconds,
        }
    }
}

proptest! {
    #![proptest_config(Config { cases: if cfg!(debug_assertions) { 12 } else { 48 }, ..Config::default() })]

    #[test]
    fn no_order_of_operations_loses_or_freezes_a_coin(
        first in prop::option::weighted(0.8, 1..4 * TON),
        rest in vec(op(), 1..24),
    ) {
        let ops: Vec<Op> = first.map(|deposit| Op::Open { deposit }).into_iter().chain(rest).collect();
        let mut model = Model { network: Network::new(), vouchers: Vec::new(), payments: 0 };
        // Storage fees of an account are taken lazily; the reserve must cover them at any time.
        for op in &ops {
            let (before, paid) = (model.network.on_chain(), model.network.paid());
            model.apply(op);
            let after = model.network.on_chain();
            let best = model.vouchers.last().copied().unwrap_or_default();
            // The worker's own account pays storage, too.
            prop_assert!(model.network.paid() + MESSAGE_FEE >= paid, "{op:?}");
            prop_assert!(model.network.paid() <= best, "paid more than was ever signed: {op:?}");
            if let Op::Settle { which, .. } = op && before.opened() && !model.vouchers.is_empty() {
                // Exactly what is due left the deposit, apart from storage.
                let due = which.get(&model.vouchers).saturating_sub(before.settled.0);
                let due = due.min(before.capacity().0 - before.settled.0);
                let left = before.settled.0 + due;
                prop_assert!(after.settled.0 <= left && after.settled.0 + MESSAGE_FEE >= left, "{op:?}: {before:?} {after:?}");
            }
        }
        model.network.assert_conserved();

        // The worker hands in its best voucher before the asker can finalize; then the asker does.
        let best = model.vouchers.last().copied().unwrap_or_default();
        let state = model.network.on_chain();
        if state.opened() && best > state.settled.0 {
            let voucher = model.network.voucher(best);
            model.call(Who::Stranger, SETTLE_VALUE.0, channel::settle(&voucher).unwrap(), false);
            model.payments += 1;
            let settled = model.network.on_chain().settled.0;
            let owed = best.min(state.capacity().0);
            prop_assert!(settled + MESSAGE_FEE >= owed, "the worker was owed {owed} and got {settled}");
            prop_assert!(model.network.paid() + model.payments * MESSAGE_FEE >= settled.min(best));
        }
        model.network.now += 30 * 86_400;
        model.call(Who::Stranger, SETTLE_VALUE.0, channel::finalize().unwrap(), true);
        prop_assert_eq!(model.network.on_chain().stage, Stage::Absent);
        prop_assert_eq!(model.network.channel_balance(), 0, "nothing stays behind");
        prop_assert!(model.network.paid() <= best);
        model.network.assert_conserved();
    }
}
