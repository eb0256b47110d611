//! What is ordered from a server, and what it sends: OpenAI's completions, with the names that vLLM, SGLang and
//! llama.cpp have for what OpenAI's API lacks. A server ignores the fields that it does not know.

use std::collections::BTreeMap;

use cocoon_inference::constraint::{Grammar, with_bounded_space};
use cocoon_inference::engine::frontend::Frontend;
use cocoon_inference::limits::{LOWEST_LOGPROB, MAX_PIECE_BYTES};
use cocoon_inference::scheduler::Salt;
use cocoon_inference::{Alternative, Logprobs, Sampling};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::recount::Recount;

/// What every order of one answer has in common.
#[derive(Debug, Clone)]
pub(super) struct Order {
    common: Map<String, Value>,
    seed: u64,
    /// How many alternatives to report beside each token.
    pub(super) top: Option<u8>,
    /// The answer must have a form. A server's grammar begins anew with every order, so there can be one only.
    pub(super) whole: bool,
}

impl Order {
    pub(super) fn new(sampling: &Sampling, grammar: Option<&Grammar>) -> Self {
        let mut common = Map::new();
        let mut put = |name: &str, value: Value| drop(common.insert(name.to_owned(), value));
        put("stream", true.into());
        put("temperature", sampling.temperature.into());
        put("top_p", sampling.top_p.into());
        put("frequency_penalty", sampling.frequency_penalty.into());
        put("presence_penalty", sampling.presence_penalty.into());
        put("repetition_penalty", sampling.repetition_penalty.into());
        // Left out, they would be what the model's folder or the server recommends.
        put("top_k", if sampling.top_k > 0 { json!(sampling.top_k) } else { json!(-1) });
        put("min_p", sampling.min_p.into());
        if !sampling.logit_bias.is_empty() {
            put("logit_bias", json!(sampling.logit_bias));
        }
        if !sampling.stop_token_ids.is_empty() {
            put("stop_token_ids", json!(sampling.stop_token_ids));
        }
        if let Some(top) = sampling.logprobs {
            put("logprobs", top.into());
            put("return_tokens_as_token_ids", true.into());
        }
        put("return_token_ids", true.into());
        // The marks of calls and thoughts are tokens of their own in some vocabularies.
        put("skip_special_tokens", false.into());
        put("spaces_between_special_tokens", false.into());
        if let Some(grammar) = grammar {
            put("structured_outputs", structured(grammar));
        }
        Self { common, seed: sampling.seed, top: sampling.logprobs, whole: grammar.is_some() }
    }

    /// The order of at most `tokens` tokens that follow `ids`.
    pub(super) fn body(&self, model: &str, ids: &[u32], tokens: u32, salt: &Salt) -> Value {
        let mut body = self.common.clone();
        body.insert("model".into(), model.into());
        body.insert("prompt".into(), json!(ids));
        body.insert("max_tokens".into(), tokens.into());
        // How long a prompt takes tells whether it was cached, hence that somebody sent it before. vLLM and SGLang
        // separate askers by a salt. llama.cpp cannot, and shall cache nothing.
        body.insert("cache_salt".into(), hex::encode(salt.0).into());
        body.insert("cache_prompt".into(), false.into());
        // Each order begins with other numbers, or the parts of an answer would repeat each other's luck. Servers
        // take 31 bits.
        let mixed = (self.seed ^ ids.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
        body.insert("seed".into(), mixed.into());
        Value::Object(body)
    }
}

fn structured(grammar: &Grammar) -> Value {
    match grammar {
        // With the space that the enclave allows, for servers whose grammars are llguidance's too.
        Grammar::JsonObject => json!({"json": with_bounded_space(json!({"type": "object"}))}),
        Grammar::JsonSchema(schema) => {
            json!({"json": with_bounded_space(serde_json::from_str(schema).unwrap_or_default())})
        }
        Grammar::Regex(regex) => json!({"regex": regex}),
        Grammar::Lark(grammar) => json!({"grammar": grammar}),
        Grammar::Choice(texts) => json!({"choice": texts}),
    }
}

/// A token that the server made.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Made {
    pub(super) id: u32,
    pub(super) logprobs: Option<Box<Logprobs>>,
}

/// Why a server sends no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The model ended its turn.
    Stop,
    /// As many as were ordered.
    Length,
}

/// What an event says.
#[derive(Debug, PartialEq)]
pub(super) struct Part {
    pub(super) tokens: Vec<Made>,
    pub(super) end: Option<End>,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    text: String,
    token_ids: Option<Vec<u32>>,
    finish_reason: Option<String>,
    logprobs: Option<Likely>,
}

/// Log-probabilities as OpenAI's completions have them (three lists side by side), or as llama.cpp does (a list of
/// entries, with ids).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Likely {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Option<Vec<Option<BTreeMap<String, f32>>>>,
    content: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    id: u32,
    logprob: f32,
    #[serde(default)]
    top_logprobs: Vec<Entry>,
}

/// Reads the data of an event. `top` is how many alternatives were asked for, if log-probabilities were.
pub(super) fn part(
    data: &[u8],
    frontend: &Frontend,
    recount: &Recount,
    top: Option<u8>,
) -> Result<Part, String> {
    if data == b"[DONE]" {
        return Ok(Part { tokens: Vec::new(), end: None });
    }
    let chunk: Chunk = serde_json::from_slice(data)
        .map_err(|e| format!("an event is not its API's: {}", short(&e.to_string())))?;
    if let Some(error) = chunk.error {
        return Err(short(
            error.get("message").and_then(Value::as_str).unwrap_or("it failed while answering"),
        ));
    }
    // The last event may only have counts.
    let Some(choice) = chunk.choices.into_iter().next() else {
        return Ok(Part { tokens: Vec::new(), end: None });
    };
    let end = match choice.finish_reason.as_deref() {
        None | Some("") => None,
        Some("stop") => Some(End::Stop),
        Some("length") => Some(End::Length),
        Some(other) => return Err(format!("it ended the answer by {:?}", short(other))),
    };
    let entries = choice.logprobs.as_ref().and_then(|likely| likely.content.as_deref());
    let spells = |ids: &Vec<u32>| {
        let pieces = ids.iter().flat_map(|&id| frontend.tokenizer().bytes(id));
        pieces.copied().eq(choice.text.bytes())
    };
    // Where a character took several tokens, llama.cpp names the last of them alone.
    let named = entries.map(|entries| entries.iter().map(|entry| entry.id).collect()).filter(spells);
    let ids: Vec<u32> = match choice.token_ids.or(named) {
        Some(ids) if ids.iter().any(|&id| id as usize >= frontend.vocab()) => {
            return Err("it sent ids that the model has not; it serves another one".into());
        }
        Some(ids) if !ids.is_empty() || choice.text.is_empty() => ids,
        _ => recount
            .ids(frontend, &choice.text)
            .ok_or("it sent text that the model's vocabulary cannot spell; it serves another one")?,
    };
    let mut likely =
        choice.logprobs.map(|likely| likely.read(ids.len(), frontend, recount)).unwrap_or_default();
    if let Some(top) = top {
        for (_, alternatives) in &mut likely {
            // Some add the sampled token to the most likely ones, or do not sort them.
            alternatives.sort_by(|a, b| b.logprob.total_cmp(&a.logprob).then(a.id.cmp(&b.id)));
            alternatives.truncate(top.into());
        }
    } else {
        likely.clear();
    }
    let made = |(i, id): (usize, u32)| Made {
        id,
        logprobs: likely.get_mut(i).map(|(logprob, top)| {
            Box::new(Logprobs { logprob: *logprob, bytes: piece(frontend, id), top: std::mem::take(top) })
        }),
    };
    Ok(Part { tokens: ids.into_iter().enumerate().map(made).collect(), end })
}

impl Likely {
    /// One entry for each of `count` ids. Where the server counts otherwise, the first has what there is.
    fn read(self, count: usize, frontend: &Frontend, recount: &Recount) -> Vec<(f32, Vec<Alternative>)> {
        let mut all: Vec<_> = match self.content {
            Some(entries) => entries.into_iter().map(|entry| entry.read(frontend)).collect(),
            None => {
                let mut tops = self.top_logprobs.unwrap_or_default().into_iter();
                let logprobs = self.token_logprobs.into_iter().take(self.tokens.len());
                let read = logprobs.map(|logprob| {
                    let named = tops.next().flatten().unwrap_or_default().into_iter();
                    let known = named.filter_map(|(token, logprob)| {
                        let id = id(&token, frontend, recount)?;
                        Some(Alternative { id, logprob: bounded(logprob), bytes: piece(frontend, id) })
                    });
                    (bounded(logprob.unwrap_or(0.0)), known.collect())
                });
                read.collect()
            }
        };
        if all.len() != count {
            let sum = bounded(all.iter().map(|(logprob, _)| logprob).sum());
            let top = all.into_iter().next().map(|(_, top)| top).unwrap_or_default();
            all = vec![(0.0, Vec::new()); count];
            if let Some(first) = all.first_mut() {
                *first = (sum, top);
            }
        }
        all
    }
}

impl Entry {
    fn read(self, frontend: &Frontend) -> (f32, Vec<Alternative>) {
        let known = self.top_logprobs.into_iter().filter(|top| (top.id as usize) < frontend.vocab());
        let top = known.map(|Entry { id, logprob, .. }| Alternative {
            id,
            logprob: bounded(logprob),
            bytes: piece(frontend, id),
        });
        (bounded(self.logprob), top.collect())
    }
}

fn bounded(logprob: f32) -> f32 {
    if logprob.is_nan() { LOWEST_LOGPROB } else { logprob.clamp(LOWEST_LOGPROB, 0.0) }
}

/// The id of a token that is named by its number or its text.
fn id(token: &str, frontend: &Frontend, recount: &Recount) -> Option<u32> {
    if let Some(number) = token.strip_prefix("token_id:") {
        return number.parse().ok().filter(|&id: &u32| (id as usize) < frontend.vocab());
    }
    match recount.ids(frontend, token)?[..] {
        [id] => Some(id),
        _ => None,
    }
}

fn piece(frontend: &Frontend, id: u32) -> Vec<u8> {
    let bytes = frontend.tokenizer().bytes(id);
    bytes[..bytes.len().min(MAX_PIECE_BYTES)].to_vec()
}

/// A text for an error, shortened.
pub(super) fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> (Frontend, Recount) {
        let dir = tempfile::tempdir().unwrap();
        cocoon_inference::embedded::write_to(dir.path()).unwrap();
        let frontend = Frontend::open(dir.path(), None, &mut |_, _| ()).unwrap();
        let recount = Recount::new(&frontend);
        (frontend, recount)
    }

    fn read(data: &str) -> Result<Part, String> {
        let (frontend, recount) = world();
        part(data.as_bytes(), &frontend, &recount, Some(2))
    }

    fn one(data: &str) -> Made {
        let mut part = read(data).unwrap();
        assert_eq!(part.tokens.len(), 1);
        part.tokens.remove(0)
    }

    #[test]
    fn tokens_of_every_server_are_read() {
        let (frontend, _) = world();
        let a = frontend.tokenizer().encode("a").unwrap()[0];
        let vllm = format!(
            r#"{{"choices":[{{"index":0,"text":"a","token_ids":[{a}],"finish_reason":null,"logprobs":{{"text_offset":[0],
            "tokens":["token_id:{a}"],"token_logprobs":[-0.5],"top_logprobs":[{{"token_id:{a}":-0.5,"token_id:98":-2.0}}]}}}}]}}"#
        );
        let llama = format!(
            r#"{{"choices":[{{"index":0,"text":"a","finish_reason":null,"logprobs":{{"content":[{{"id":{a},"token":"a",
            "bytes":[97],"logprob":-0.5,"top_logprobs":[{{"id":{a},"token":"a","bytes":[97],"logprob":-0.5}},
            {{"id":98,"token":"b","bytes":[98],"logprob":-2.0}}]}}]}}}}]}}"#
        );
        for data in [vllm, llama] {
            let Made { id, logprobs } = one(&data);
            let logprobs = logprobs.unwrap();
            assert_eq!((id, logprobs.logprob, logprobs.bytes.as_slice()), (a, -0.5, &b"a"[..]), "{data}");
            assert_eq!(logprobs.top.iter().map(|top| top.id).collect::<Vec<_>>(), [a, 98], "{data}");
        }
        let text = r#"{"choices":[{"text":"a","finish_reason":null}]}"#;
        assert_eq!(one(text), Made { id: a, logprobs: None });
        // Three alternatives where two were asked for, and a name that does not spell the text.
        let more = format!(
            r#"{{"choices":[{{"text":"é","finish_reason":null,"logprobs":{{"content":[{{"id":{a},"logprob":-0.5,
            "top_logprobs":[{{"id":99,"logprob":-3.0}},{{"id":98,"logprob":-2.0}},{{"id":{a},"logprob":-0.5}}]}}]}}}}]}}"#
        );
        let part = read(&more).unwrap();
        let spelled: Vec<u8> =
            part.tokens.iter().flat_map(|made| frontend.tokenizer().bytes(made.id)).copied().collect();
        assert_eq!(spelled, "é".as_bytes());
        let top =
            |made: &Made| made.logprobs.as_ref().map(|l| l.top.iter().map(|t| t.id).collect::<Vec<_>>());
        assert_eq!(top(&part.tokens[0]), Some(vec![a, 98]));
    }

    #[test]
    fn ends_and_faults_are_told_apart() {
        let end =
            |reason: &str| read(&format!(r#"{{"choices":[{{"text":"","finish_reason":"{reason}"}}]}}"#));
        assert_eq!(end("stop").unwrap(), Part { tokens: Vec::new(), end: Some(End::Stop) });
        assert_eq!(end("length").unwrap().end, Some(End::Length));
        assert!(end("abort").unwrap_err().contains("abort"));
        assert_eq!(read("[DONE]").unwrap().end, None);
        assert_eq!(read(r#"{"choices":[],"usage":{"total_tokens":3}}"#).unwrap().tokens, []);
        assert_eq!(read(r#"{"error":{"message":"out of memory"}}"#).unwrap_err(), "out of memory");
        assert!(read("{").unwrap_err().contains("event"));
        let nowhere = r#"{"choices":[{"text":"","token_ids":[4294967295],"finish_reason":null}]}"#;
        assert!(read(nowhere).unwrap_err().contains("ids that the model has not"));
    }

    #[test]
    fn an_order_says_what_was_asked_for() {
        let sampling = Sampling {
            temperature: 0.5,
            top_k: 7,
            seed: 3,
            logprobs: Some(2),
            logit_bias: [(9, -100.0)].into(),
            ..Sampling::default()
        };
        let grammar = Grammar::JsonSchema(r#"{"type":"object"}"#.into());
        let order = Order::new(&sampling, Some(&grammar));
        let body = order.body("m", &[1, 2], 5, &Salt([1; 32]));
        assert_eq!(body["prompt"], json!([1, 2]));
        assert_eq!(body["max_tokens"], 5);
        assert_eq!(body["logit_bias"], json!({"9": -100.0}));
        assert_eq!(body["structured_outputs"]["json"]["type"], "object");
        assert_eq!(body["cache_salt"], hex::encode([1; 32]));
        assert_eq!((body["min_p"].as_f64(), &body["top_k"]), (Some(0.0), &json!(7)));
        assert!(order.whole);
        assert!(body["seed"].as_u64().unwrap() < 1 << 31);
        assert_ne!(body["seed"], order.body("m", &[1, 2, 3], 5, &Salt([1; 32]))["seed"]);
    }
}
