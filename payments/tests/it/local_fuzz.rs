//! Seeded mutations of messages and requests: any answer is fine, a panic is not.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};
use serde_json::{Value, json};

use super::local_testkit::{Harness, TestWallet, base64};
use cocoon_payments::local::toncenter;

/// Signature checks are thirty times slower without optimisation.
const MUTATIONS: usize = if cfg!(debug_assertions) { 1_000 } else { 20_000 };

fn mutate(bytes: &mut Vec<u8>, random: &mut ChaCha8Rng) {
    for _ in 0..=random.next_u32() % 4 {
        if bytes.is_empty() {
            bytes.push(0);
        }
        let at = random.next_u32() as usize % bytes.len();
        match random.next_u32() % 5 {
            0 => bytes[at] ^= 1 << (random.next_u32() % 8),
            1 => bytes[at] = random.next_u32().to_le_bytes()[0],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.next_u32().to_le_bytes()[0]),
            _ => {
                let tail = bytes[at..].to_vec();
                bytes.extend(tail.iter().take(16));
            }
        }
    }
}

#[test]
fn mutated_messages_never_panic() {
    let mut harness = Harness::new();
    let alice = TestWallet::new(1);
    harness.fund(&alice.address(), 5_000_000_000);
    let seeds = [
        alice.transfer(0, harness.now + 60, &alice.address(), 1),
        alice.transfer(1, harness.now + 60, &alice.address(), 1),
    ];
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for index in 0..MUTATIONS {
        let mut boc = seeds[index % seeds.len()].clone();
        mutate(&mut boc, &mut random);
        let _ = harness.chain.submit(&boc);
    }
    harness.block();
}

#[test]
fn mutated_requests_never_panic() {
    let mut harness = Harness::new();
    let alice = TestWallet::new(1);
    harness.fund(&alice.address(), 5_000_000_000);
    let address = alice.address().to_string();
    let boc = base64(&alice.transfer(0, harness.now + 60, &alice.address(), 1));
    let requests = [
        ("getAddressInformation", json!({ "address": address })),
        (
            "runGetMethod",
            json!({ "address": address, "method": "seqno", "stack": [["num", "0x1"], ["tvm.Cell", "te6cckEBAQEAAgAAAEysuc0="], ["tuple", [["list", [["null"]]]]]] }),
        ),
        (
            "getTransactions",
            json!({ "address": address, "limit": 3, "lt": "1000003", "hash": "ab", "to_lt": 0 }),
        ),
        ("sendBocReturnHash", json!({ "boc": boc })),
        (
            "estimateFee",
            json!({ "address": address, "body": "te6cckEBAQEAAgAAAEysuc0=", "init_code": "", "init_data": "", "ignore_chksig": false }),
        ),
        ("tryLocateResultTx", json!({ "source": address, "destination": address, "created_lt": "1" })),
        ("lookupBlock", json!({ "workchain": 0, "lt": "1000000" })),
        ("getConfigParam", json!({ "config_id": 21 })),
    ];
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for index in 0..MUTATIONS {
        let (method, params) = &requests[index % requests.len()];
        let mut text = params.to_string().into_bytes();
        mutate(&mut text, &mut random);
        if let Ok(params) = serde_json::from_slice::<Value>(&text) {
            let _ = toncenter(&harness.chain, method, &params);
        }
    }
    harness.block();
}
