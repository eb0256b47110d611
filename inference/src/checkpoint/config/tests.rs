use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::decoder::{Attention, RopeScaling, Rotary};

fn good() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 300,
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 24, "intermediate_size": 96,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 50_000.0,
        "hidden_act": "silu", "tie_word_embeddings": true, "eos_token_id": [1, 2],
        "rope_scaling": null, "torch_dtype": "bfloat16", "something_new": {}
    })
}

fn of(family: Family) -> Value {
    let mut value = good();
    value["model_type"] = json!(family.model_type());
    value["architectures"] = json!([family.architecture()]);
    if family == Family::Gemma3 {
        value["sliding_window"] = json!(16);
        value["query_pre_attn_scalar"] = json!(25);
        value["hidden_activation"] = json!("gelu_pytorch_tanh");
        value["num_hidden_layers"] = json!(7);
    }
    value
}

fn change(mut value: Value, change: impl Fn(&mut Value)) -> Result<ModelConfig, ConfigError> {
    change(&mut value);
    parse_config(value.to_string().as_bytes(), None)
}

fn parse(f: impl Fn(&mut Value)) -> Result<ModelConfig, ConfigError> {
    change(good(), f)
}

fn first_rotary(config: &ModelConfig) -> Rotary {
    config.dimensions.layers[0].rotary
}

#[test]
fn both_forms_of_rope_theta_are_read() {
    assert_eq!(first_rotary(&parse(|_| ()).unwrap()).theta, 50_000.0);
    let nested = parse(|v| {
        v["rope_theta"] = Value::Null;
        v["rope_parameters"] = json!({"rope_theta": 7.5e3, "rope_type": "default"});
    });
    assert_eq!(first_rotary(&nested.unwrap()).theta, 7500.0);
    let both = parse(|v| v["rope_parameters"] = json!({"rope_theta": 7.5e3})).unwrap_err();
    assert_eq!(
        both.to_string(),
        "field `rope_parameters.rope_theta` is `7500`; it must be the same as `rope_theta`, 50000"
    );
}

#[test]
fn each_defect_names_its_field() {
    let cases: [(&str, Value); 17] = [
        ("model_type", json!("gpt2")),
        ("architectures", json!(["LlamaForCausalLM"])),
        ("hidden_size", json!(-1)),
        ("hidden_size", json!("64")),
        ("num_hidden_layers", json!(1e30)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(7)),
        ("rope_scaling", json!("linear")),
        ("use_sliding_window", json!(true)),
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("quantization_config", json!({"quant_method": "gptq"})),
        ("partial_rotary_factor", json!(0.5)),
        ("tie_word_embeddings", json!("yes")),
        ("eos_token_id", json!(300)),
        ("rms_norm_eps", json!(0)),
    ];
    for (field, bad) in cases {
        let error = parse(|v| v[field] = bad.clone()).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{field}: {error}");
    }
    let error = parse(|v| v["vocab_size"] = Value::Null).unwrap_err().to_string();
    assert_eq!(error, "field `vocab_size` is missing; it must be a whole number from 1 to 4194304");
}

#[test]
fn each_familys_unsupported_options_are_refused_by_name() {
    let cases: [(Family, &str, Value); 9] = [
        (Family::Llama, "hidden_act", json!("gelu")),
        (Family::Llama, "sliding_window", json!(64)),
        (Family::Llama, "mlp_bias", json!(true)),
        (Family::Mistral, "attention_bias", json!(true)),
        (Family::Mistral, "layer_types", json!(["sliding_attention", "full_attention"])),
        (Family::Gemma3, "attn_logit_softcapping", json!(50.0)),
        (Family::Gemma3, "final_logit_softcapping", json!(30.0)),
        (Family::Gemma3, "use_bidirectional_attention", json!(true)),
        (Family::Gemma3, "hidden_activation", json!("gelu")),
    ];
    for (family, field, bad) in cases {
        let error = change(of(family), |v| v[field] = bad.clone()).unwrap_err();
        assert!(matches!(&error, ConfigError::Unsupported { field: f, .. } if f == field), "{error}");
    }
    let error = parse(|v| v["model_type"] = json!("gemma3")).unwrap_err().to_string();
    assert_eq!(
        error,
        "field `model_type` is `\"gemma3\"`, which this engine does not compute; it serves `qwen3`, \
         `llama`, `mistral` and `gemma3_text`"
    );
}

#[test]
fn rope_scaling_is_read_or_refused_by_name() {
    let scaled = |scaling: Value| change(of(Family::Llama), |v| v["rope_scaling"] = scaling.clone());
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    });
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192.0,
    };
    assert_eq!(first_rotary(&scaled(llama3.clone()).unwrap()).scaling, expected);
    let linear = scaled(json!({"type": "linear", "factor": 2})).unwrap();
    assert_eq!(first_rotary(&linear).scaling, RopeScaling::Linear { factor: 2.0 });

    let broken = |field: &str, bad: Value| {
        let mut scaling = llama3.clone();
        scaling[field] = bad;
        scaled(scaling).unwrap_err().to_string()
    };
    for (field, bad) in [
        ("rope_type", json!("yarn")),
        ("factor", json!(0)),
        ("low_freq_factor", Value::Null),
        ("high_freq_factor", json!(1.0)),
        ("original_max_position_embeddings", json!(0.5)),
        ("partial_rotary_factor", json!(0.25)),
    ] {
        let error = broken(field, bad);
        assert!(error.contains(&format!("`rope_scaling.{field}`")), "{field}: {error}");
    }
}

#[test]
fn a_mistral_without_the_field_has_the_default_window_and_with_null_none() {
    let window = |f: &dyn Fn(&mut Value)| {
        change(of(Family::Mistral), f).unwrap().dimensions.layers.iter().map(|a| a.window).collect::<Vec<_>>()
    };
    assert_eq!(window(&|_| ()), [Some(4096); 2]);
    assert_eq!(window(&|v| v["sliding_window"] = Value::Null), [None; 2]);
    assert_eq!(window(&|v| v["sliding_window"] = json!(9)), [Some(9); 2]);
}

#[test]
fn both_forms_of_gemmas_layers_are_the_same() {
    let old = change(of(Family::Gemma3), |v| {
        v["rope_theta"] = json!(1e6);
        v["rope_local_base_freq"] = json!(1e4);
        v["sliding_window_pattern"] = json!(3);
        v["rope_scaling"] = json!({"rope_type": "linear", "factor": 8.0});
    })
    .unwrap();
    let new = change(of(Family::Gemma3), |v| {
        v["rope_theta"] = Value::Null;
        let (s, f) = ("sliding_attention", "full_attention");
        v["layer_types"] = json!([s, s, f, s, s, f, s]);
        v["rope_parameters"] = json!({
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        });
    })
    .unwrap();
    assert_eq!(old, new);
    let full = Attention {
        window: None,
        rotary: Rotary { theta: 1e6, scaling: RopeScaling::Linear { factor: 8.0 } },
    };
    assert_eq!(old.dimensions.layers[2], full);
    assert_eq!(old.dimensions.layers[6].window, Some(16));
    // √64 is exact in every format; the scalar is not the width of a head.
    assert_eq!(old.dimensions.embed_scale, 8.0);
    assert!((old.dimensions.query_scale - 0.2).abs() < 1e-15);

    let short = change(of(Family::Gemma3), |v| v["layer_types"] = json!(["full_attention"])).unwrap_err();
    assert!(short.to_string().contains("`layer_types`"), "{short}");
    let windowless = change(of(Family::Gemma3), |v| v["sliding_window"] = Value::Null).unwrap_err();
    assert!(windowless.to_string().contains("`sliding_window` is missing"), "{windowless}");
}

#[test]
fn gemmas_embedding_scale_is_rounded_to_the_checkpoints_format() {
    let scale = |dtype: Value| {
        change(of(Family::Gemma3), |v| {
            v["hidden_size"] = json!(1152);
            v["torch_dtype"] = dtype.clone();
        })
        .map(|c| c.dimensions.embed_scale)
    };
    assert_eq!(scale(json!("bfloat16")).unwrap(), 34.0);
    assert_eq!(scale(json!("float32")).unwrap(), 1152f32.sqrt());
    assert!(scale(json!("int8")).unwrap_err().to_string().contains("`torch_dtype`"));
    assert!(scale(Value::Null).unwrap_err().to_string().contains("`dtype` is missing"));
}

#[test]
fn dimensions_that_add_up_to_too_much_are_refused() {
    let huge = parse(|v| {
        v["hidden_size"] = json!(65_536);
        v["intermediate_size"] = json!(1_048_576);
        v["num_hidden_layers"] = json!(1024);
    });
    assert!(matches!(huge, Err(ConfigError::Value { field, .. }) if field == "num_hidden_layers"));
}

#[test]
fn end_tokens_come_from_both_files() {
    let config = good().to_string();
    let both = parse_config(config.as_bytes(), Some(br#"{"eos_token_id": 7}"#)).unwrap();
    assert_eq!(both.end_tokens, BTreeSet::from([1, 2, 7]));
    let none = parse(|v| v["eos_token_id"] = Value::Null);
    assert!(matches!(none, Err(ConfigError::Missing { field, .. }) if field == "eos_token_id"));
}
