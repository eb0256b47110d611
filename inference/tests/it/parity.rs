//! The decoder computes what `transformers` computes.
//!
//! The fixtures are random checkpoints of every family with the logits of `transformers` at every
//! position, written by `tests/parity/make_fixture.py`, which says what each covers. The bound is the
//! largest difference relative to the largest logit of the position.

use safetensors::{Dtype, SafeTensors};

use crate::testkit::{fixture, load};

const BOUND: f32 = 1e-4;
const FIXTURES: [&str; 6] = ["untied", "tied", "llama3", "llama-linear", "mistral", "gemma3"];
/// Tokens per step: one by one, an odd number that straddles windows, and all at once.
const CHUNKS: [usize; 3] = [1, 7, 96];

struct Expected {
    ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
    greedy_prompt: Vec<u32>,
    greedy: Vec<u32>,
}

fn expected(name: &str) -> Expected {
    let bytes = std::fs::read(fixture(name).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |tensor: &str, dtype| {
        let view = file.tensor(tensor).unwrap();
        assert_eq!(view.dtype(), dtype);
        view.data().as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect::<Vec<_>>()
    };
    let ids = |tensor| words(tensor, Dtype::U32);
    let logits: Vec<f32> = words("logits", Dtype::F32).into_iter().map(f32::from_bits).collect();
    let width = file.tensor("logits").unwrap().shape()[1];
    Expected {
        ids: ids("ids"),
        logits: logits.chunks(width).map(<[f32]>::to_vec).collect(),
        greedy_prompt: ids("greedy_prompt"),
        greedy: ids("greedy"),
    }
}

/// The root mean square of all differences, relative to that of the expected values.
fn relative_rms(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let pairs = found.iter().flatten().zip(expected.iter().flatten());
    let error = squares(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (error / squares(&mut expected.iter().flatten().map(|&b| f64::from(b)))).sqrt()
}

fn difference(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let at = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        assert_eq!(a.len(), b.len());
        let difference = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        difference / b.iter().map(|b| b.abs()).fold(0.0, f32::max)
    };
    // A difference that is no number must not vanish in the maximum.
    found
        .iter()
        .zip(expected)
        .map(at)
        .fold(0.0, |worst, one| if one > worst || one.is_nan() { one } else { worst })
}

fn assert_close(what: &str, found: &[Vec<f32>], expected: &[Vec<f32>]) {
    let worst = difference(found, expected);
    assert!(worst <= BOUND, "{what}: {worst}");
    println!("{what}: worst {worst:.2e}");
}

fn argmax(row: &[f32]) -> u32 {
    let best = row.iter().enumerate().reduce(|a, b| if b.1 > a.1 { b } else { a }).unwrap();
    best.0 as u32
}

#[test]
fn logits_are_those_of_transformers_at_every_position() {
    for name in FIXTURES {
        let expected = expected(name);
        let logits = load(name).logits(&expected.ids, expected.ids.len()).unwrap();
        assert_close(&format!("{name}, one pass"), &logits, &expected.logits);
    }
}

/// The decoder in burn's own operations, for any device, computes the same.
#[test]
fn the_reference_decoder_agrees_too() {
    use burn::tensor::{Device, Int, Tensor};
    use cocoon_inference::checkpoint::Checkpoint;
    use cocoon_inference::decoder::Decoder;
    for name in FIXTURES {
        let expected = expected(name);
        let Checkpoint { config, tensors, .. } =
            Checkpoint::open(&fixture(name), None, &mut |_, _| ()).unwrap();
        let device = Device::flex();
        let fetch = |name: &str, shape: &[usize]| tensors.get(name, shape);
        let decoder = Decoder::from_tensors(config.dimensions, &device, fetch).unwrap();
        let ids: Vec<i32> = expected.ids.iter().map(|&id| id as i32).collect();
        let logits = decoder.forward(Tensor::<1, Int>::from_data(ids.as_slice(), &device).unsqueeze());
        let vocab = decoder.config().vocab_size;
        let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
        let rows: Vec<Vec<f32>> = logits.chunks(vocab).map(<[f32]>::to_vec).collect();
        assert_close(&format!("{name}, reference"), &rows, &expected.logits);
    }
}

#[test]
fn prefill_equals_token_by_token() {
    for name in FIXTURES {
        let expected = expected(name);
        let engine = load(name);
        let whole = engine.logits(&expected.ids, expected.ids.len()).unwrap();
        for chunk in CHUNKS {
            let logits = engine.logits(&expected.ids, chunk).unwrap();
            assert_eq!(logits, whole, "{name}, chunks of {chunk}: not the same bits");
        }
    }
}

/// Weights in fewer bits stay within bounds that hold for every family: half precision keeps ten bits, int8
/// seven of weights and activations, int4 three of weights, in steps eighteen times as wide. (Models of a few dozen random
/// dimensions average little of that out.)
#[test]
fn rounded_weights_stay_near() {
    use cocoon_inference::BurnEngine;
    use cocoon_inference::kernels::Precision;
    for name in FIXTURES {
        let expected = expected(name);
        for (precision, weights, logits) in
            [(Precision::F16, 5e-4, 5e-3), (Precision::Int8, 5e-3, 0.2), (Precision::Int4, 7.2e-2, 0.9)]
        {
            let engine = BurnEngine::load_as(&fixture(name), precision, None, &mut |_, _| ()).unwrap();
            let error = engine.rounding_error();
            // A checkpoint in half precision loses nothing in it.
            let exact = precision == Precision::F16 && error.max == 0.0;
            assert!(exact || (error.max > 0.0 && error.max <= weights), "{name} {precision:?}: {error:?}");
            let found = engine.logits(&expected.ids, 7).unwrap();
            let found = relative_rms(&found, &expected.logits);
            assert!(found <= logits, "{name} {precision:?}: {found}");
            assert_eq!(engine.logits(&expected.ids, 1).unwrap(), engine.logits(&expected.ids, 16).unwrap());
        }
    }
}

/// If the best token after each prefix of a continuation is its next one, then greedy decoding makes
/// that continuation: one pass over it decides.
#[test]
fn the_greedy_continuation_is_that_of_transformers() {
    for name in FIXTURES {
        let Expected { greedy_prompt, greedy, .. } = expected(name);
        assert_eq!(greedy.len(), 64);
        let engine = load(name);
        let whole = [&greedy_prompt[..], &greedy[..greedy.len() - 1]].concat();
        for chunk in CHUNKS {
            let logits = engine.logits(&whole, chunk).unwrap();
            let found: Vec<u32> = logits[greedy_prompt.len() - 1..].iter().map(|row| argmax(row)).collect();
            assert_eq!(found, greedy, "{name}, chunks of {chunk}");
        }
    }
}

#[test]
fn every_family_is_served_under_its_name() {
    use cocoon_inference::Engine;
    let families = FIXTURES.map(|name| load(name).info().family.clone());
    assert_eq!(families, ["qwen3", "qwen3", "llama", "llama", "mistral", "gemma3"]);
}

#[test]
fn prompts_are_rendered_and_tokenised_as_transformers_does() {
    use cocoon_inference::{ChatRole, Engine, GenerateRequest, Message, Sampling};
    for name in FIXTURES {
        let engine = load(name);
        let text = std::fs::read_to_string(fixture(name).join("expected_chat.json")).unwrap();
        let chats: serde_json::Value = serde_json::from_str(&text).unwrap();
        for chat in chats.as_array().unwrap() {
            let messages = chat["messages"].as_array().unwrap().iter().map(|m| {
                let role: ChatRole = serde_json::from_value(m["role"].clone()).unwrap();
                Message::new(role, m["content"].as_str().unwrap())
            });
            let digest = engine.info().digest;
            let request = GenerateRequest::new(digest, messages.collect(), Sampling::default());
            let rendered = engine.render(&request).unwrap();
            assert_eq!(rendered, chat["text"].as_str().unwrap());
            let ids: Vec<u64> =
                engine.tokenizer().encode(&rendered).unwrap().into_iter().map(u64::from).collect();
            let expected: Vec<u64> =
                chat["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
            assert_eq!(ids, expected);

            // Token by token, control tokens being nothing. Mistral's decoder strips the space that its
            // tokenizer puts before a text.
            let bytes: Vec<u8> =
                ids.iter().flat_map(|&id| engine.tokenizer().bytes(id as u32).to_vec()).collect();
            let text = String::from_utf8(bytes).unwrap();
            let decoded = chat["decoded"].as_str().unwrap();
            let stripped = text.strip_prefix(' ').filter(|_| name == "mistral");
            assert_eq!(stripped.unwrap_or(&text), decoded, "{name}");
        }
    }
}
