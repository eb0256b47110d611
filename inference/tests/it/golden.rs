//! The wire form of a request is pinned: a change of it must be a decision.

use std::path::Path;

use cocoon_inference::{
    ChatRole, GenerateRequest, Message, Sampling, Structure, codec,
    constraint::Grammar,
    tools::{ToolCall, ToolChoice, ToolDefinition},
};

fn request() -> GenerateRequest {
    GenerateRequest {
        model: std::array::from_fn(|i| i as u8),
        messages: vec![
            Message::new(ChatRole::System, "Be brief."),
            Message::new(ChatRole::User, "Grüße, 世界"),
            Message {
                reasoning: Some("Add.".into()),
                tool_calls: vec![ToolCall {
                    id: "c1".into(),
                    name: "add".into(),
                    arguments: "{\"a\":1}".into(),
                }],
                ..Message::new(ChatRole::Assistant, "Hi")
            },
            Message {
                tool_call_id: Some("c1".into()),
                name: Some("add".into()),
                ..Message::new(ChatRole::Tool, "3")
            },
        ],
        structure: Structure {
            tools: vec![ToolDefinition {
                name: "add".into(),
                description: Some("Adds.".into()),
                parameters: Some("{}".into()),
            }],
            choice: ToolChoice::Auto,
            parallel: true,
            grammar: Some(Grammar::JsonSchema("{\"type\":\"object\"}".into())),
            variables: "{\"enable_thinking\":false}".into(),
            now: Some(1_700_000_000),
        },
        sampling: Sampling {
            temperature: 0.5,
            top_p: 0.9,
            top_k: 40,
            min_p: 0.05,
            repetition_penalty: 1.25,
            frequency_penalty: 0.5,
            presence_penalty: -0.5,
            logit_bias: [(7, -100.0), (70_000, 2.5)].into(),
            seed: 1 << 40,
            stop: vec!["\n\n".into()],
            stop_token_ids: vec![9, 300],
            max_tokens: Some(300),
            logprobs: Some(5),
        },
        prefix: vec![0, 250, 251, 70_000],
        cache_key: Some("a key".into()),
    }
}

#[test]
fn a_request_is_encoded_as_ever() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/generate_request_v4.hex");
    let encoded = hex::encode(codec::encode_request(&request()).unwrap());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, encoded.clone() + "\n").unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert_eq!(encoded, golden.trim());
    assert_eq!(codec::decode_request(&hex::decode(golden.trim()).unwrap()).unwrap(), request());
}

#[test]
fn the_version_before_is_refused_by_number() {
    let mut old = codec::encode_request(&request()).unwrap();
    old[0] = 3;
    let error = codec::decode_request(&old).unwrap_err();
    assert_eq!(error, codec::CodecError::Version { found: 3 });
    assert!(error.to_string().contains("update"), "{error}");
}
