//! The wire, byte for byte. A change here is a change of protocol: raise a version instead.
//!
//! `COCOON_BLESS=1 cargo test -p cocoon-client golden` writes the files anew, and copies them into
//! the fuzz corpora.

use std::{env, fs, path::PathBuf};

use bytes::Bytes;
use cocoon_client::session::{
    inner::{self, FailCode, ToAsker, ToEnclave, Welcome},
    outer::{Accepted, Open, RefusalCode, Refused, ToClient, ToHost, Voucher},
};
use cocoon_inference::{
    Alternative, AnswerForm, ChatRole, FinishReason, GenerateRequest, Logprobs, Message, RequestError,
    Sampling, Thinking, Token, Usage, tools::ToolFormat,
};
use cocoon_payments::{Address, NanoTon, Receipt, SignedReceipt, SignedVoucher, Voucher as Promise};
use ed25519_dalek::SigningKey;

fn here(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(path)
}

/// Compares with `golden/<folder>-<name>.hex`.
fn golden(folder: &str, name: &str, bytes: &[u8]) {
    let path = here(&format!("golden/{folder}-{name}.hex"));
    if env::var_os("COCOON_BLESS").is_some() {
        fs::create_dir_all(here("golden")).unwrap();
        fs::write(&path, hex::encode(bytes) + "\n").unwrap();
        let corpus = here("corpus").join(folder);
        fs::create_dir_all(&corpus).unwrap();
        fs::write(corpus.join(name), bytes).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_else(|_| panic!("{} is missing", path.display()));
    assert_eq!(hex::encode(bytes), expected.trim(), "{folder} {name}: the wire changed");
}

fn voucher() -> SignedVoucher {
    let voucher = Promise {
        global_id: -217,
        channel: Address::base([0xa5; 32]),
        channel_id: 7,
        cumulative: NanoTon(1_234_567),
    };
    voucher.sign(&SigningKey::from_bytes(&[1; 32]))
}

fn receipt() -> SignedReceipt {
    let receipt = Receipt {
        session: [1; 32],
        stream: 3,
        worker: vec![9; 38],
        model: [2; 32],
        channel: Some(Address::base([4; 32])),
        input_tokens: 17,
        output_tokens: 50,
        price_input: 1_000_000,
        price_output: 2_000_000,
        cost: NanoTon(117),
        paid: NanoTon(120),
        finished_at: 1_790_000_000,
    };
    receipt.sign(&SigningKey::from_bytes(&[5; 32]))
}

#[test]
fn frames_to_the_host() {
    let open = Open {
        wire_version: 1,
        network_id: [1; 32],
        evidence_digest: [2; 32],
        policy: 1,
        noise: vec![3; 48],
        channel: vec![4; 165],
        proof: [5; 64],
    };
    let voucher = Voucher { signed: voucher(), allocations: vec![(1, 64), (300, 1_000_000)] };
    let frames = [
        ("open", ToHost::Open(open)),
        ("noise", ToHost::Noise(Bytes::from_static(&[6; 20]))),
        ("voucher", ToHost::Voucher(voucher)),
        ("bye", ToHost::Bye),
    ];
    for (name, frame) in frames {
        let bytes = frame.encode().unwrap();
        golden("to_host", name, &bytes);
        assert_eq!(ToHost::decode(bytes.into()), Ok(frame));
    }
}

#[test]
fn frames_to_the_client() {
    let frames = [
        ("accepted", ToClient::Accepted(Accepted { noise: vec![3; 48], newest: Some(voucher()) })),
        ("accepted-new", ToClient::Accepted(Accepted { noise: vec![3; 48], newest: None })),
        ("noise", ToClient::Noise(Bytes::from_static(&[6; 20]))),
        ("refused", ToClient::Refused(Refused { code: RefusalCode::Busy, message: "later".into() })),
        ("bye", ToClient::Bye { reason: "going home".into() }),
    ];
    for (name, frame) in frames {
        let bytes = frame.encode().unwrap();
        golden("to_client", name, &bytes);
        assert_eq!(ToClient::decode(bytes.into()), Ok(frame));
    }
}

#[test]
fn messages_to_the_enclave() {
    let request = GenerateRequest {
        prefix: vec![1, 70_000],
        ..GenerateRequest::new(
            [7; 32],
            vec![Message::new(ChatRole::User, "What is 2+2?")],
            Sampling { stop: vec!["\n".into()], max_tokens: Some(40), ..Sampling::default() },
        )
    };
    let options = Sampling {
        temperature: 0.5,
        top_p: 0.75,
        top_k: 40,
        min_p: 0.125,
        repetition_penalty: 1.5,
        frequency_penalty: 0.5,
        presence_penalty: -0.5,
        logit_bias: [(7, -100.0), (70_000, 2.5)].into(),
        stop_token_ids: vec![9, 300],
        logprobs: Some(2),
        ..request.sampling.clone()
    };
    let cache_key = Some("a key".to_owned());
    let options = GenerateRequest { sampling: options, cache_key, ..request.clone() };
    let request = ToEnclave::Request { stream: 1, request: Box::new(request), max_cost: 1_000_000 };
    let options = ToEnclave::Request { stream: 1, request: Box::new(options), max_cost: 1_000_000 };
    let records = [
        ("options", vec![options]),
        ("request", vec![request.clone()]),
        ("batch", vec![ToEnclave::Challenge { nonce: [5; 32] }, request, ToEnclave::Cancel { stream: 1 }]),
    ];
    for (name, messages) in records {
        let bytes = inner::encode(&messages).unwrap();
        golden("to_enclave", name, &bytes);
        assert_eq!(inner::decode::<ToEnclave>(&bytes), Ok(messages));
    }
}

#[test]
fn messages_to_the_asker() {
    let welcome = Welcome {
        price_input: 1_000,
        price_output: 2_000,
        quantum: 1,
        model: [7; 32],
        context: 256,
        receipt_key: [8; 32],
    };
    let token = |id, text: &str| Token::new(id, text);
    let alternative = |id, logprob, bytes: &[u8]| Alternative { id, logprob, bytes: bytes.to_vec() };
    let half = Logprobs {
        logprob: -0.25,
        bytes: vec![0xc3],
        top: vec![alternative(300, -0.25, &[0xc3]), alternative(52, -1.5, b"4")],
    };
    let half = Token { logprobs: Some(Box::new(half)), ..token(300, "") };
    let records = [
        ("welcome", vec![ToAsker::Welcome(welcome)]),
        ("live", vec![ToAsker::Live(vec![1, 2, 3])]),
        ("logprobs", vec![ToAsker::Tokens { stream: 1, start: 0, tokens: vec![half] }]),
        (
            "answer",
            vec![
                ToAsker::Quoted {
                    stream: 1,
                    input_tokens: 17,
                    input_cost: 17,
                    form: AnswerForm { tools: Some(ToolFormat::Hermes), reasoning: Thinking::Possible },
                },
                ToAsker::Tokens { stream: 1, start: 0, tokens: vec![token(52, "4"), token(300, "é")] },
                ToAsker::Finished {
                    stream: 1,
                    reason: FinishReason::Stop,
                    text: ".".into(),
                    usage: Usage { prompt_tokens: 17, cached_tokens: 16, completion_tokens: 2 },
                    receipt: Box::new(receipt()),
                },
            ],
        ),
        (
            "failed",
            vec![
                ToAsker::Failed {
                    stream: 2,
                    code: FailCode::Request(RequestError::ContextExceeded { prompt: 300, limit: 256 }),
                    message: "too long".into(),
                },
                ToAsker::Failed { stream: 3, code: FailCode::Ceiling { needed: 9 }, message: String::new() },
            ],
        ),
    ];
    for (name, messages) in records {
        let bytes = inner::encode(&messages).unwrap();
        golden("to_asker", name, &bytes);
        assert_eq!(inner::decode::<ToAsker>(&bytes), Ok(messages));
    }
}

#[test]
fn every_defect_of_a_record_has_its_own_error() {
    let good = inner::encode(&[ToEnclave::Cancel { stream: 1 }]).unwrap();
    let mut other_version = good.clone();
    other_version[0] = 9;
    let cases: [(&[u8], &str); 4] = [
        (&[], "empty"),
        (&other_version, "version 9"),
        (&good[..1], "no message"),
        (&[good[0], 250], "malformed"),
    ];
    for (bytes, words) in cases {
        let error = inner::decode::<ToEnclave>(bytes).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let many = vec![ToEnclave::Cancel { stream: 1 }; inner::MAX_BATCH + 1];
    assert!(inner::encode(&many).is_err());
    let mut flood = inner::encode(&many[1..]).unwrap();
    flood.extend_from_slice(&good[1..]);
    assert_eq!(inner::decode::<ToEnclave>(&flood), Err(inner::RecordError::TooMany));
}
