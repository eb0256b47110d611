//! The shapes of toncenter's API v2, as the npm package @ton/ton checks them and as ton-http-api serves them.

use serde_json::{Value, json};
use tonlib_core::{
    cell::{BagOfCells, CellBuilder},
    tlb_types::tlb::TLB,
};

use super::local_testkit::{Harness, TestWallet, base64};

const TON: u64 = 1_000_000_000;

/// A chain on which Alice has deployed her wallet by paying Bob.
fn scene() -> (Harness, TestWallet, TestWallet) {
    let mut harness = Harness::new();
    let (alice, bob) = (TestWallet::new(1), TestWallet::new(2));
    harness.fund(&alice.address(), 5 * TON);
    harness.chain.submit(&alice.transfer(0, harness.now + 60, &bob.address(), TON)).unwrap();
    harness.block();
    (harness, alice, bob)
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn assert_block_id(id: &Value) {
    assert_eq!(id["@type"], "ton.blockIdExt");
    assert!(id["workchain"].is_i64() && id["shard"].is_string() && id["seqno"].is_u64());
    assert!(id["root_hash"].is_string() && id["file_hash"].is_string());
}

#[test]
fn the_masterchain_names_head_and_zero_state() {
    let (harness, ..) = scene();
    let info = harness.call("getMasterchainInfo", json!({}));
    assert_eq!(keys(&info), ["@type", "last", "state_root_hash", "init"]);
    assert_block_id(&info["last"]);
    assert_block_id(&info["init"]);
    assert_eq!(info["init"]["root_hash"], base64(&harness.chain.zero_state()));
    assert_eq!(info["last"]["seqno"], 2);
    assert_eq!(info["last"]["root_hash"], base64(&harness.chain.head().root_hash));
}

#[test]
fn accounts_are_told_in_every_shape() {
    let (harness, alice, bob) = scene();
    let friendly = alice.address().friendly(false, false);
    let info = harness.call("getAddressInformation", json!({ "address": friendly }));
    assert_eq!(info["state"], "active");
    assert!(info["balance"].is_string() && info["sync_utime"].is_u64());
    assert!(!info["code"].as_str().unwrap().is_empty() && !info["data"].as_str().unwrap().is_empty());
    assert_eq!(info["last_transaction_id"]["@type"], "internal.transactionId");
    assert_ne!(info["last_transaction_id"]["lt"], "0");
    assert_block_id(&info["block_id"]);

    let raw = json!({ "address": bob.address().to_string() });
    let info = harness.call("getAddressInformation", raw.clone());
    assert_eq!(
        (&info["state"], &info["code"], &info["data"]),
        (&json!("uninitialized"), &json!(""), &json!(""))
    );
    assert_eq!(harness.call("getAddressBalance", raw.clone()), TON.to_string());

    let unknown = json!({ "address": format!("0:{}", "7".repeat(64)) });
    let info = harness.call("getAddressInformation", unknown.clone());
    assert_eq!(info["last_transaction_id"]["lt"], "0");
    assert_eq!(harness.call("getAddressState", unknown), "uninitialized");

    let wallet = harness.call("getWalletInformation", json!({ "address": friendly }));
    assert_eq!(wallet["wallet"], true);
    assert_eq!((&wallet["wallet_type"], &wallet["seqno"]), (&json!("wallet v5 r1"), &json!(1)));
    assert_eq!(harness.call("getWalletInformation", raw)["wallet"], false);
    let extended = harness.call("getExtendedAddressInformation", json!({ "address": friendly }));
    assert_eq!(extended["account_state"]["@type"], "raw.accountState");
}

#[test]
fn transactions_are_listed_page_by_page() {
    let (mut harness, alice, bob) = scene();
    for seqno in 1..5 {
        harness.chain.submit(&alice.transfer(seqno, harness.now + 60, &bob.address(), 1000)).unwrap();
        harness.block();
    }
    let address = alice.address().to_string();
    let all = harness.call("getTransactions", json!({ "address": address, "limit": 100 }));
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), 6);
    let mut walked: Vec<Value> = Vec::new();
    let mut params = json!({ "address": address, "limit": "2" });
    loop {
        let page = harness.call("getTransactions", params.clone());
        let page = page.as_array().unwrap();
        // A page starts with the transaction that is asked for.
        let fresh = usize::from(!walked.is_empty());
        walked.extend(page.iter().skip(fresh).cloned());
        if page.len() <= fresh {
            break;
        }
        let last = &page.last().unwrap()["transaction_id"];
        params["lt"] = last["lt"].clone();
        params["hash"] = last["hash"].clone();
    }
    assert_eq!(&walked, all);

    let newest = &all[0];
    for field in ["data", "fee", "storage_fee", "other_fee"] {
        assert!(newest[field].is_string(), "{field}");
    }
    assert!(newest["utime"].is_u64());
    let sent = &newest["out_msgs"][0];
    for field in
        ["source", "destination", "value", "fwd_fee", "ihr_fee", "created_lt", "body_hash", "message"]
    {
        assert!(sent[field].is_string(), "{field}");
    }
    assert_eq!(sent["msg_data"]["@type"], "msg.dataRaw");
    assert_eq!(sent["value"], "1000");
    assert_eq!(newest["in_msg"]["source"], "", "external");

    let wrong = json!({ "address": address, "lt": newest["transaction_id"]["lt"], "hash": "00".repeat(32) });
    assert_eq!(harness.refusal("getTransactions", wrong).0, 404);
    let hex = json!({
        "address": address, "limit": 1,
        "lt": newest["transaction_id"]["lt"],
        "hash": hex::encode(harness.chain.stored_transactions(&alice.address(), None, None, 1).unwrap()[0].hash),
    });
    assert_eq!(harness.call("getTransactions", hex)[0], *newest, "@ton/ton sends hashes in hex");
    let above = json!({ "address": address, "to_lt": all[2]["transaction_id"]["lt"] });
    assert_eq!(harness.call("getTransactions", above).as_array().unwrap().len(), 2);
}

#[test]
fn a_message_is_followed_from_both_ends() {
    let (harness, alice, bob) = scene();
    let sent = harness.call("getTransactions", json!({ "address": alice.address().to_string(), "limit": 1 }));
    let message = &sent[0]["out_msgs"][0];
    let ends = json!({
        "source": alice.address().to_string(),
        "destination": bob.address().to_string(),
        "created_lt": message["created_lt"],
    });
    let arrived = harness.call("tryLocateResultTx", ends.clone());
    assert_eq!(arrived["in_msg"]["hash"], message["hash"]);
    assert_eq!(harness.call("tryLocateSourceTx", ends.clone())["transaction_id"], sent[0]["transaction_id"]);
    let mut other = ends;
    other["created_lt"] = json!("1");
    assert_eq!(harness.refusal("tryLocateResultTx", other.clone()).0, 404);
    assert_eq!(harness.refusal("tryLocateSourceTx", other).0, 404);
}

#[test]
fn blocks_are_found_by_number_time_and_logical_time() {
    let (harness, alice, _) = scene();
    let head = harness.chain.head();
    let shards = harness.call("shards", json!({ "seqno": head.seqno }));
    assert_block_id(&shards["shards"][0]);
    assert_eq!(shards["shards"][0]["workchain"], 0);
    let header = harness.call(
        "getBlockHeader",
        json!({ "workchain": -1, "shard": "-9223372036854775808", "seqno": head.seqno }),
    );
    assert_eq!(header["global_id"], harness.chain.global_id());
    assert_eq!(header["prev_blocks"][0]["seqno"], head.seqno - 1);
    for key in [
        json!({ "seqno": head.seqno }),
        json!({ "lt": head.start_lt.to_string() }),
        json!({ "unixtime": head.unixtime }),
    ] {
        let mut params = key;
        params["workchain"] = json!(0);
        assert_eq!(harness.call("lookupBlock", params)["seqno"], head.seqno);
    }
    let listed = harness.call(
        "getBlockTransactions",
        json!({ "workchain": "0", "shard": "8000000000000000", "seqno": head.seqno }),
    );
    assert_eq!(listed["incomplete"], false);
    let accounts: Vec<&str> =
        listed["transactions"].as_array().unwrap().iter().map(|id| id["account"].as_str().unwrap()).collect();
    assert_eq!(accounts.len(), 2);
    assert_eq!(accounts[0], alice.address().to_string());
    assert_eq!(harness.refusal("getBlockHeader", json!({ "workchain": -1, "seqno": 99 })).0, 404);
}

#[test]
fn the_configuration_carries_current_fees_and_the_own_global_id() {
    let (harness, ..) = scene();
    let param =
        |id: i32| harness.call("getConfigParam", json!({ "config_id": id }))["config"]["bytes"].clone();
    let decode = |id: i32| {
        use base64::{Engine as _, prelude::BASE64_STANDARD};
        let boc = BASE64_STANDARD.decode(param(id).as_str().unwrap()).unwrap();
        BagOfCells::parse(&boc).unwrap().single_root().unwrap()
    };
    let (gas, forward) = (decode(21), decode(25));
    let mut gas = gas.parser();
    assert_eq!(gas.load_u8(8).unwrap(), 0xd1);
    assert_eq!((gas.load_u64(64).unwrap(), gas.load_u64(64).unwrap()), (100, 6667));
    assert_eq!((gas.load_u8(8).unwrap(), gas.load_u64(64).unwrap()), (0xde, 4_369_067));
    let mut forward = forward.parser();
    assert_eq!(forward.load_u8(8).unwrap(), 0xea);
    assert_eq!(
        [forward.load_u64(64).unwrap(), forward.load_u64(64).unwrap(), forward.load_u64(64).unwrap()],
        [66_667, 4_369_067, 436_906_667]
    );
    assert_eq!(decode(19).parser().load_i32(32).unwrap(), harness.chain.global_id());
    assert_eq!(harness.refusal("getConfigParam", json!({ "config_id": 9999 })).0, 404);
}

#[test]
fn fees_are_estimated_as_they_are_charged() {
    let (mut harness, alice, bob) = scene();
    let boc = alice.transfer(1, harness.now + 60, &bob.address(), TON / 2);
    let body = alice.signed_body(1, harness.now + 60, &bob.address(), TON / 2);
    let estimate = harness.call(
        "estimateFee",
        json!({
            "address": alice.address().to_string(),
            "body": base64(&body.to_boc(false).unwrap()),
            "init_code": "", "init_data": "", "ignore_chksig": true,
        }),
    );
    let fees = &estimate["source_fees"];
    assert_eq!(estimate["@type"], "query.fees");
    let fee = |name: &str| fees[name].as_u64().unwrap();
    let estimated = fee("in_fwd_fee") + fee("storage_fee") + fee("gas_fee") + fee("fwd_fee");
    assert!(fee("in_fwd_fee") > 0 && fee("gas_fee") > 0 && fee("fwd_fee") > 0, "{fees}");
    harness.chain.submit(&boc).unwrap();
    harness.block();
    let done = harness.call("getTransactions", json!({ "address": alice.address().to_string(), "limit": 1 }));
    let charged: u64 = done[0]["fee"].as_str().unwrap().parse().unwrap();
    assert!(charged.abs_diff(estimated) <= 2, "estimated {estimated}, charged {charged}");
}

#[test]
fn get_methods_answer_in_pairs_of_kind_and_value() {
    let (harness, alice, bob) = scene();
    let call = |params: Value| harness.call("runGetMethod", params);
    let seqno = call(json!({ "address": alice.address().to_string(), "method": "seqno", "stack": [] }));
    assert_eq!(seqno["stack"], json!([["num", "0x1"]]));
    assert_eq!(seqno["exit_code"], 0);
    assert!(seqno["gas_used"].as_u64().unwrap() > 0);
    let by_id = call(json!({ "address": alice.address().to_string(), "method": 85143, "stack": [] }));
    assert_eq!(by_id["stack"], seqno["stack"]);
    let extensions =
        call(json!({ "address": alice.address().to_string(), "method": "get_extensions", "stack": [] }));
    assert_eq!(extensions["stack"], json!([["list", { "@type": "tvm.list", "elements": [] }]]), "null");
    let unknown = call(
        json!({ "address": alice.address().to_string(), "method": "nothing", "stack": [["num", "0x7"]] }),
    );
    assert_eq!(unknown["exit_code"], 11);
    let uninit = call(json!({ "address": bob.address().to_string(), "method": "seqno", "stack": [] }));
    assert_eq!((&uninit["exit_code"], &uninit["stack"]), (&json!(-13), &json!([])));
}

#[test]
fn sending_returns_the_hashes_under_which_the_message_is_found() {
    let (harness, alice, bob) = scene();
    let boc = alice.transfer(1, harness.now + 60, &bob.address(), 1);
    let sent = harness.call("sendBocReturnHash", json!({ "boc": base64(&boc) }));
    let cell = BagOfCells::parse(&boc).unwrap().single_root().unwrap();
    assert_eq!(sent["hash"], base64(TLB::cell_hash(&*cell).unwrap().as_slice()));
    // TEP-467: no source, no import fee, no state init, the body in a reference.
    let mut normal = CellBuilder::new();
    normal.store_u8(2, 0b10).unwrap().store_u8(2, 0).unwrap();
    normal.store_address(&alice.address().into()).unwrap().store_coins(&0u8.into()).unwrap();
    normal.store_bit(false).unwrap().store_bit(true).unwrap();
    let body = alice.signed_body(1, harness.now + 60, &bob.address(), 1);
    let normal = normal.store_child(body).unwrap().build().unwrap();
    assert_eq!(sent["hash_norm"], base64(TLB::cell_hash(&normal).unwrap().as_slice()));
    assert_eq!(harness.call("sendBoc", json!({ "boc": base64(&boc) }))["@type"], "ok");
}

#[test]
fn bad_parameters_are_refused_by_name() {
    let (harness, alice, _) = scene();
    let address = alice.address().to_string();
    for (method, params, named) in [
        ("getAddressBalance", json!({}), "address is missing"),
        ("getAddressBalance", json!({ "address": 5 }), "address is not a string"),
        ("getAddressBalance", json!({ "address": "EQnonsense" }), "address"),
        ("getTransactions", json!({ "address": address, "limit": "x" }), "limit"),
        ("getTransactions", json!({ "address": address, "limit": -1 }), "limit"),
        ("getTransactions", json!({ "address": address, "lt": 1.5 }), "lt"),
        ("getTransactions", json!({ "address": address, "lt": "1", "hash": "zz" }), "hash"),
        ("sendBoc", json!({ "boc": "%%%" }), "boc is not base64"),
        ("sendBoc", json!({ "boc": "AAAA" }), "bag of cells"),
        ("runGetMethod", json!({ "address": address }), "method"),
        ("runGetMethod", json!({ "address": address, "method": "seqno", "stack": "x" }), "stack"),
        ("runGetMethod", json!({ "address": address, "method": "seqno", "stack": [["huge", "1"]] }), "stack"),
        ("estimateFee", json!({ "address": address }), "body is missing"),
        ("estimateFee", json!({ "address": address, "body": "AAAA" }), "body"),
        ("lookupBlock", json!({ "workchain": 0 }), "seqno"),
        ("shards", json!({ "seqno": "4294967296" }), "seqno"),
        ("getBlockHeader", json!({ "workchain": 3, "seqno": 1 }), "workchain"),
    ] {
        let (code, message) = harness.refusal(method, params.clone());
        assert_eq!(code, 422, "{method} {params}: {message}");
        assert!(message.contains(named), "{method} {params}: {message}");
    }
    assert_eq!(harness.refusal("getEverything", json!({})).0, 404);
    assert_eq!(harness.refusal("getMasterchainInfo", json!([])).0, 422);
    let stale = alice.transfer(0, harness.now + 60, &alice.address(), 1);
    let (code, message) = harness.refusal("sendBoc", json!({ "boc": base64(&stale) }));
    assert_eq!(code, 500);
    assert!(message.contains("did not accept") && message.contains("exit code"), "{message}");
}
