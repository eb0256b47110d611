//! Embeddings are those of `transformers` with sentence-transformers' pooling, in any company, or there is an error
//! that says what to do. The fixtures are by `tests/parity/make_fixture.py`.

use std::path::Path;

use cocoon_inference::embedder::{MAX_TEXT_BYTES, MAX_TEXTS, STEP_TOKENS, is_embedder};
use cocoon_inference::kernels::Precision;
use cocoon_inference::{EmbedError, Embedder, LoadError};
use safetensors::SafeTensors;

use crate::testkit::fixture;

const FIXTURES: [&str; 2] = ["bert", "bert-masked"];
/// The largest difference of a value, relative to the largest value of the text.
const BOUND: f32 = 1e-4;
const POOLING: &str = "1_Pooling/config.json";

fn load(dir: &Path) -> Embedder {
    Embedder::load(dir, None, &mut |_, _| ()).unwrap()
}

/// A file and what becomes of it.
type Change<'a> = (&'a str, &'a dyn Fn(Vec<u8>) -> Vec<u8>);

/// A copy of a fixture's model files, with some of them changed or, where nothing is left, removed.
fn changed(name: &str, changes: &[Change<'_>]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    let files =
        std::fs::read_dir(fixture(name)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let files = files.filter(|name| name.contains('.') && !name.starts_with("expected"));
    for file in files.chain([POOLING.to_owned()]) {
        let mut bytes = std::fs::read(fixture(name).join(&file)).unwrap();
        for (_, change) in changes.iter().filter(|(changed, _)| *changed == file) {
            bytes = change(bytes);
        }
        if !bytes.is_empty() {
            std::fs::write(dir.path().join(file), bytes).unwrap();
        }
    }
    dir
}

fn write<'a>(text: &'a str) -> impl Fn(Vec<u8>) -> Vec<u8> + 'a {
    move |_| text.as_bytes().to_vec()
}

fn replace<'a>(from: &'a str, to: &'a str) -> impl Fn(Vec<u8>) -> Vec<u8> + 'a {
    move |bytes| {
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains(from), "{from}");
        text.replace(from, to).into_bytes()
    }
}

const UNNORMALISED: &str = r#"[{"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]"#;

fn pooled(name: &str, way: &str) -> tempfile::TempDir {
    let pooling = format!(r#"{{"pooling_mode": "{way}"}}"#);
    changed(name, &[("modules.json", &write(UNNORMALISED)), (POOLING, &write(&pooling))])
}

struct Text {
    text: String,
    tokens: u32,
}

fn texts(name: &str) -> Vec<Text> {
    let file = std::fs::read_to_string(fixture(name).join("expected_texts.json")).unwrap();
    let all: serde_json::Value = serde_json::from_str(&file).unwrap();
    let text = |v: &serde_json::Value| Text {
        text: v["text"].as_str().unwrap().into(),
        tokens: v["ids"].as_array().unwrap().len() as u32,
    };
    all.as_array().unwrap().iter().map(text).collect()
}

fn expected(name: &str, way: &str) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(fixture(name).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(way).unwrap();
    let values: Vec<f32> = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    values.chunks(tensor.shape()[1]).map(<[f32]>::to_vec).collect()
}

/// The largest difference in any text, relative to the largest value there.
fn difference(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let one = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        assert_eq!(a.len(), b.len());
        let difference = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        difference / b.iter().map(|b| b.abs()).fold(0.0, f32::max)
    };
    found
        .iter()
        .zip(expected)
        .map(one)
        .fold(0.0, |worst, one| if one > worst || one.is_nan() { one } else { worst })
}

fn embed(embedder: &Embedder, texts: &[Text]) -> Vec<Vec<f32>> {
    let texts: Vec<&str> = texts.iter().map(|t| t.text.as_str()).collect();
    embedder.embed(&texts).unwrap().into_iter().map(|e| e.values).collect()
}

#[test]
fn every_way_of_pooling_gives_what_transformers_gives() {
    for name in FIXTURES {
        for way in ["mean", "cls", "max", "mean_sqrt_len_tokens"] {
            let found = embed(&load(pooled(name, way).path()), &texts(name));
            let worst = difference(&found, &expected(name, way));
            assert!(worst <= BOUND, "{name}, {way}: {worst}");
            println!("{name}, {way}: worst {worst:.2e}");
        }
    }
}

#[test]
fn the_normalised_mean_is_the_mean_by_its_length() {
    for name in FIXTURES {
        let found = embed(&load(&fixture(name)), &texts(name));
        let by_length = |v: Vec<f32>| {
            let length = v.iter().map(|x| x * x).sum::<f32>().sqrt();
            v.into_iter().map(|x| x / length).collect()
        };
        let expected: Vec<Vec<f32>> = expected(name, "mean").into_iter().map(by_length).collect();
        assert!(difference(&found, &expected) <= BOUND, "{name}");
    }
}

#[test]
fn tokens_are_counted_and_long_texts_cut() {
    for name in FIXTURES {
        let (embedder, texts) = (load(&fixture(name)), texts(name));
        assert_eq!(embedder.info().context, 16);
        for text in &texts {
            let embedding = embedder.embed(&[&text.text]).unwrap().remove(0);
            assert_eq!(
                (embedding.tokens, embedding.truncated),
                (text.tokens, text.tokens == 16),
                "{}",
                text.text
            );
        }
        // What is cut off has no effect; 14 words fit beside the two tokens that are added.
        let words = |count| vec!["cat"; count].join(" ");
        let [exact, longer] = [14, 15].map(|n| embedder.embed(&[&words(n)]).unwrap().remove(0));
        assert_eq!((exact.truncated, longer.truncated), (false, true));
        assert_eq!(exact.values, longer.values);
    }
}

#[test]
fn an_embedding_is_the_same_to_the_bit_in_any_company() {
    for precision in Precision::ALL {
        let embedder = Embedder::load_as(&fixture("bert"), precision, None, &mut |_, _| ()).unwrap();
        let texts = texts("bert");
        let alone: Vec<_> = texts.iter().map(|t| embedder.embed(&[&t.text]).unwrap().remove(0)).collect();
        // Enough for several steps, the last of them short.
        let rounds = 3 * STEP_TOKENS / texts.iter().map(|t| t.tokens as usize).sum::<usize>();
        let many: Vec<&str> = (0..rounds).flat_map(|_| texts.iter().map(|t| t.text.as_str())).collect();
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let together = pool.install(|| embedder.embed(&many)).unwrap();
            for round in together.chunks(texts.len()) {
                assert_eq!(round, alone, "{precision}, {threads} threads");
            }
        }
    }
}

#[test]
fn narrower_weights_give_nearly_the_same() {
    for (precision, bound) in [(Precision::F16, 5e-3), (Precision::Int8, 0.1)] {
        for name in FIXTURES {
            let dir = pooled(name, "mean");
            let embedder = Embedder::load_as(dir.path(), precision, None, &mut |_, _| ()).unwrap();
            let worst = difference(&embed(&embedder, &texts(name)), &expected(name, "mean"));
            assert!(worst <= bound, "{name}, {precision}: {worst}");
        }
    }
}

#[test]
fn what_has_no_embedding_is_refused_with_advice() {
    let embedder = load(&fixture("bert"));
    let error = |texts: &[&str]| embedder.embed(texts).unwrap_err();
    assert_eq!(error(&[]), EmbedError::NoTexts);
    assert_eq!(error(&["cat", ""]), EmbedError::Empty { index: 1 });
    assert_eq!(error(&[" \n\t"]), EmbedError::Empty { index: 0 });
    assert_eq!(error(&["[CLS]", "\u{0}"]), EmbedError::Empty { index: 1 });
    let long = "a ".repeat(MAX_TEXT_BYTES / 2 + 1);
    assert_eq!(error(&[&long]), EmbedError::TooLong { index: 0, found: long.len() });
    assert_eq!(error(&vec!["a"; MAX_TEXTS + 1]), EmbedError::TooMany { found: MAX_TEXTS + 1 });
    assert_eq!(embedder.embed(&vec!["a"; MAX_TEXTS]).unwrap().len(), MAX_TEXTS);
    for refused in [error(&[]), error(&[""]), error(&[&long])] {
        assert!(refused.to_string().contains(';'), "{refused}");
    }
}

#[test]
fn the_digest_covers_every_file_that_changes_an_embedding() {
    let digest = load(&fixture("bert")).info().digest;
    let mut last = (0, 1);
    Embedder::load(&fixture("bert"), Some(digest), &mut |done, all| last = (done, all)).unwrap();
    assert_eq!(last.0, last.1);
    let files = [
        "config.json",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    for file in files.into_iter().chain(["model.safetensors", POOLING]) {
        let dir = changed(
            "bert",
            &[(file, &|mut bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                bytes
            })],
        );
        let error = Embedder::load(dir.path(), Some(digest), &mut |_, _| ()).unwrap_err();
        assert!(error.to_string().starts_with("model digest is"), "{file}: {error}");
    }
}

/// Where the data of a safetensors file begins: behind the header's length and the header.
fn data(bytes: &[u8]) -> usize {
    8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

fn error(changes: &[Change<'_>]) -> String {
    let dir = changed("bert", changes);
    Embedder::load(dir.path(), None, &mut |_, _| ()).unwrap_err().to_string()
}

#[test]
fn a_defect_of_any_file_is_named() {
    let config = |from, to| error(&[("config.json", &replace(from, to))]);
    assert_eq!(
        config("\"num_attention_heads\": 3", "\"num_attention_heads\": 5"),
        "config.json: field `num_attention_heads` is 5; it must be a divisor of `hidden_size`, 24"
    );
    assert!(config("\"bert\"", "\"roberta\"").contains("field `model_type` is `\"roberta\"`"));
    let wider = config("\"intermediate_size\": 40", "\"intermediate_size\": 48");
    assert!(
        wider.contains("intermediate.dense.weight has shape [40, 24], the configuration asks for [48, 24]")
    );
    let deeper = config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    assert!(deeper.contains("tensor encoder.layer.2.attention.self.query.weight is missing"), "{deeper}");
    let fewer = config("\"vocab_size\": 66", "\"vocab_size\": 60");
    assert!(fewer.starts_with("tokenizer.json: token ") && fewer.contains("`vocab_size` is 60"), "{fewer}");

    let nan = error(&[("model.safetensors", &|mut bytes| {
        let first = data(&bytes);
        bytes[first..first + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        bytes
    })]);
    assert!(nan.contains("holds NaN or infinity at index 0"), "{nan}");

    let broken = error(&[("tokenizer.json", &write("{"))]);
    assert!(broken.starts_with("tokenizer.json: not a tokenizer"), "{broken}");
    let last = error(&[(POOLING, &write(r#"{"pooling_mode_lasttoken": true}"#))]);
    assert!(
        last.starts_with("1_Pooling/config.json: field `pooling_mode_lasttoken` is `true`, which"),
        "{last}"
    );
    let short = error(&[("sentence_bert_config.json", &write(r#"{"max_seq_length": 2}"#))]);
    assert!(short.contains("`max_seq_length` is 2; it must be above 2"), "{short}");
    for file in ["tokenizer.json", "modules.json", POOLING] {
        let gone = error(&[(file, &write(""))]);
        assert!(gone.starts_with(&format!("{file} is missing from the checkpoint")), "{gone}");
    }
}

#[test]
fn a_tokenizer_of_another_model_is_refused_when_it_shows() {
    // A token that no vocabulary lists, and a type that the table has no row for.
    for (from, to, table) in [
        ("\"ids\": [\n     2\n    ]", "\"ids\": [9999]", "token 9999"),
        ("\"id\": \"A\",\n     \"type_id\": 0", "\"id\": \"A\", \"type_id\": 7", "token type 7"),
    ] {
        let dir = changed("bert", &[("tokenizer.json", &replace(from, to))]);
        let error = load(dir.path()).embed(&["a"]).unwrap_err();
        assert!(matches!(error, EmbedError::Foreign { index: 0, .. }), "{error}");
        assert!(error.to_string().contains(table), "{error}");
    }
}

#[test]
fn weights_too_large_for_a_precision_are_noticed() {
    let dir = changed(
        "bert",
        &[("model.safetensors", &|mut bytes| {
            let first = data(&bytes);
            for value in bytes[first..].as_chunks_mut::<4>().0 {
                *value = (f32::from_le_bytes(*value) * 1e30).to_le_bytes();
            }
            bytes
        })],
    );
    let embedder = Embedder::load_as(dir.path(), Precision::F16, None, &mut |_, _| ()).unwrap();
    assert_eq!(embedder.embed(&["cat"]), Err(EmbedError::NotFinite { index: 0 }));
}

#[test]
fn embedders_are_told_from_generators() {
    assert!(is_embedder(&fixture("bert")).unwrap());
    assert!(!is_embedder(&fixture("untied")).unwrap());
    let error = Embedder::load(&fixture("untied"), None, &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("serves `bert` for embeddings"), "{error}");
    let error = cocoon_inference::BurnEngine::load(&fixture("bert"), None, &mut |_, _| ()).unwrap_err();
    assert!(matches!(error, LoadError::Config(_)), "{error}");
}
