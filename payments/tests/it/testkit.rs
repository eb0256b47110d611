//! Keys, terms and vouchers that tests share.

use cocoon_payments::{
    Address, NanoTon, Receipt, SignedReceipt, SignedVoucher, Voucher, channel::ChannelParams,
};
use ed25519_dalek::SigningKey;

pub const GLOBAL_ID: i32 = -217;

pub fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

/// Terms that validate, between accounts that do not exist.
pub fn params() -> ChannelParams {
    ChannelParams {
        client: Address::base([0xc1; 32]),
        worker: Address::base([0x33; 32]),
        client_key: key(1).verifying_key().to_bytes(),
        worker_key: key(2).verifying_key().to_bytes(),
        channel_id: 7,
        close_delay_s: 3600,
        open_by: 1_790_000_600,
        expire_at: 1_790_086_400,
    }
}

pub fn voucher(params: &ChannelParams, global_id: i32, cumulative: u64) -> SignedVoucher {
    Voucher {
        global_id,
        channel: params.address().unwrap(),
        channel_id: params.channel_id,
        cumulative: NanoTon(cumulative),
    }
    .sign(&key(1))
}

pub fn receipt() -> SignedReceipt {
    Receipt {
        session: [1; 32],
        stream: 3,
        worker: vec![9; 38],
        model: [2; 32],
        channel: Some(params().address().unwrap()),
        input_tokens: 17,
        output_tokens: 50,
        price_input: 1_000_000,
        price_output: 2_000_000,
        cost: NanoTon(117),
        paid: NanoTon(120),
        finished_at: 1_790_000_000,
    }
    .sign(&key(5))
}
