//! What becomes of the encoder's rows, as sentence-transformers writes it down.
//!
//! `modules.json` lists the steps: the encoder, the pooling, and perhaps a normalisation. Each step has its own file.
//! A step, a way of pooling or a prompt that is not computed is refused: without it the vectors would look right and
//! be of another space. Both spellings are read, that of versions up to 5 and that of version 6.

use serde_json::{Map, Value};

use super::pooling::Pooling;
use crate::checkpoint::{ConfigError, Fields, LoadError, MAX_CONFIG_BYTES};
use crate::manifest::POOLING_FILE;

pub(super) const MODULES_FILE: &str = "modules.json";
pub(super) const ENCODER_FILE: &str = "sentence_bert_config.json";
pub(super) const PROMPTS_FILE: &str = "config_sentence_transformers.json";
pub(super) const TOKENIZER_FILE: &str = "tokenizer_config.json";

/// What is done around the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recipe {
    /// How one vector is made of a text's rows.
    pub(crate) pooling: Pooling,
    /// Whether that vector gets length one.
    pub(crate) normalise: bool,
    /// Tokens of a text that are read, those that the tokenizer adds among them.
    pub(crate) max_tokens: usize,
}

impl Recipe {
    /// Reads the steps from the files that `find` hands out by name, for an encoder of this width and this number
    /// of positions.
    pub(crate) fn read<'a>(
        find: impl Fn(&str) -> Option<&'a [u8]>,
        hidden_size: usize,
        positions: usize,
    ) -> Result<Self, LoadError> {
        let need = |name| find(name).ok_or(LoadError::Missing { name });
        let of = |file| move |why| LoadError::Module { file, why: Box::new(why) };
        let normalise = normalises(need(MODULES_FILE)?).map_err(of(MODULES_FILE))?;
        let pooling = pooling(need(POOLING_FILE)?, hidden_size).map_err(of(POOLING_FILE))?;
        if let Some(prompts) = find(PROMPTS_FILE) {
            no_prompt(prompts).map_err(of(PROMPTS_FILE))?;
        }
        let given = match find(ENCODER_FILE) {
            Some(file) => text_length(file, positions).map_err(of(ENCODER_FILE))?,
            None => None,
        };
        let usual = match find(TOKENIZER_FILE) {
            Some(file) => tokenizer_length(file).map_err(of(TOKENIZER_FILE))?,
            None => None,
        };
        let max_tokens = given.unwrap_or_else(|| usual.unwrap_or(positions).min(positions));
        Ok(Self { pooling, normalise, max_tokens })
    }
}

/// Checks the steps; whether the last one normalises.
fn normalises(modules: &[u8]) -> Result<bool, ConfigError> {
    #[derive(serde::Deserialize)]
    struct Module {
        #[serde(default)]
        path: String,
        r#type: String,
    }
    if modules.len() as u64 > MAX_CONFIG_BYTES {
        return Err(ConfigError::TooLarge { found: modules.len() });
    }
    let modules: Vec<Module> = serde_json::from_slice(modules)
        .map_err(|e| ConfigError::Json(format!("expected a list of modules: {e}")))?;
    let steps: Vec<_> = modules.iter().map(|m| kind(&m.r#type)).collect();
    let normalise = match steps[..] {
        ["Transformer", "Pooling"] => false,
        ["Transformer", "Pooling", "Normalize"] => true,
        _ => {
            let found = steps.iter().take(8).map(|s| s.chars().take(40).collect::<String>());
            return Err(ConfigError::Unsupported {
                field: "type".into(),
                found: format!("`{}`", found.collect::<Vec<_>>().join(", ")),
                supported: "`Transformer, Pooling`, and `Normalize` after them".into(),
            });
        }
    };
    for (step, path) in ["", "1_Pooling"].into_iter().enumerate() {
        let found = &modules[step].path;
        if found != path {
            return Err(ConfigError::Value {
                field: format!("[{step}].path"),
                found: format!("{:?}", found.chars().take(60).collect::<String>()),
                expected: format!("{path:?}, where the files of this step are looked for"),
            });
        }
    }
    Ok(normalise)
}

/// The last part of a class's name; all of it for classes of others, who may mean something else.
fn kind(class: &str) -> &str {
    let own = class.strip_prefix("sentence_transformers.").and_then(|rest| rest.rsplit('.').next());
    own.unwrap_or(class)
}

fn pooling(config: &[u8], hidden_size: usize) -> Result<Pooling, ConfigError> {
    let fields = Fields::parse(config)?;
    for field in ["word_embedding_dimension", "embedding_dimension"] {
        let found = fields.integer(field, 1..=usize::MAX, Some(hidden_size))?;
        if found != hidden_size {
            let expected = format!("{hidden_size}, `hidden_size` of config.json");
            return Err(fields.wrong(field, found.to_string(), expected));
        }
    }
    match fields.get("pooling_mode") {
        Some(_) => one_mode(&fields),
        None => flagged_mode(&fields, config),
    }
}

const SERVED: &str = "one of `mean`, `cls`, `max` and `mean_sqrt_len_tokens`";

/// `"pooling_mode": "mean"`, as version 6 writes it.
fn one_mode(fields: &Fields) -> Result<Pooling, ConfigError> {
    let of = |value: &Value| Pooling::ALL.into_iter().find(|p| value == p.name());
    fields.supported("pooling_mode", SERVED, |v| of(v).is_some())?;
    let mode = fields.get("pooling_mode").and_then(of);
    mode.ok_or_else(|| fields.missing("pooling_mode", SERVED))
}

/// One flag for each mode, of which one is set.
fn flagged_mode(fields: &Fields, config: &[u8]) -> Result<Pooling, ConfigError> {
    const PREFIX: &str = "pooling_mode_";
    // Also the names of modes that came later, which must not be passed over.
    let map: Map<String, Value> =
        serde_json::from_slice(config).map_err(|e| ConfigError::Json(e.to_string()))?;
    let mut modes = Vec::new();
    for name in map.keys().filter(|name| name.starts_with(PREFIX)) {
        if fields.flag(name, false)? {
            let mode = Pooling::ALL.into_iter().find(|p| name == p.flag());
            fields.supported(name, SERVED, |_| mode.is_some())?;
            modes.extend(mode);
        }
    }
    match modes[..] {
        [mode] => Ok(mode),
        [] => Err(fields.missing("pooling_mode", SERVED)),
        _ => {
            let found = modes.iter().map(|m| m.name()).collect::<Vec<_>>().join(", ");
            Err(ConfigError::Unsupported {
                field: "pooling_mode".into(),
                found: format!("`{found}` together"),
                supported: SERVED.into(),
            })
        }
    }
}

/// A prompt that sentence-transformers would put before every text.
fn no_prompt(config: &[u8]) -> Result<(), ConfigError> {
    let fields = Fields::parse(config)?;
    fields.supported("default_prompt_name", "`null`: put the prompt before the texts yourself", |_| false)
}

/// `max_seq_length`, which may be left to the tokenizer.
fn text_length(config: &[u8], positions: usize) -> Result<Option<usize>, ConfigError> {
    let fields = Fields::parse(config)?;
    fields.supported("do_lower_case", "`false`: the tokenizer says what becomes of case", |v| *v == false)?;
    fields.supported("transformer_task", "`feature-extraction`", |v| v == "feature-extraction")?;
    if let Some(text) = fields.inside("modality_config")?.map(|m| m.inside("text")).transpose()?.flatten() {
        text.supported("method_output_name", "`last_hidden_state`", |v| v == "last_hidden_state")?;
    }
    let given = fields.get("max_seq_length").is_some();
    given.then(|| fields.integer("max_seq_length", 1..=positions, None)).transpose()
}

/// `model_max_length`, which is a huge number where there is no limit.
fn tokenizer_length(config: &[u8]) -> Result<Option<usize>, ConfigError> {
    let fields = Fields::parse(config)?;
    let limit = fields.get("model_max_length").and_then(Value::as_u64);
    Ok(limit.and_then(|n| usize::try_from(n).ok()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const OLD: &str = "sentence_transformers.models.";

    fn modules(kinds: &[&str]) -> Value {
        let module = |(i, kind): (usize, &&str)| {
            let path = if i == 0 { String::new() } else { format!("{i}_{kind}") };
            json!({"idx": i, "name": i.to_string(), "path": path, "type": format!("{OLD}{kind}")})
        };
        kinds.iter().enumerate().map(module).collect()
    }

    fn read(files: &[(&str, Value)]) -> Result<Recipe, LoadError> {
        let files: Vec<_> = files.iter().map(|(name, value)| (*name, value.to_string())).collect();
        let find = |name: &str| files.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_bytes());
        Recipe::read(find, 32, 64)
    }

    fn with(file: &'static str, value: Value) -> Result<Recipe, LoadError> {
        let mut files = vec![
            (MODULES_FILE, modules(&["Transformer", "Pooling", "Normalize"])),
            (POOLING_FILE, json!({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": true})),
        ];
        files.retain(|(name, _)| *name != file);
        files.push((file, value));
        read(&files)
    }

    #[test]
    fn steps_of_either_version_are_read() {
        let recipe = with(ENCODER_FILE, json!({"max_seq_length": 24, "do_lower_case": false})).unwrap();
        assert_eq!(recipe, Recipe { pooling: Pooling::Mean, normalise: true, max_tokens: 24 });
        let new = json!([
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling",
             "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"},
        ]);
        let pooling = json!({"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": true});
        let recipe = read(&[(MODULES_FILE, new), (POOLING_FILE, pooling)]).unwrap();
        assert_eq!(recipe, Recipe { pooling: Pooling::Cls, normalise: false, max_tokens: 64 });
    }

    #[test]
    fn each_way_of_pooling_has_two_spellings() {
        for pooling in Pooling::ALL {
            let flags = with(POOLING_FILE, json!({"pooling_mode_cls_token": false, pooling.flag(): true}));
            let named = with(POOLING_FILE, json!({"pooling_mode": pooling.name()}));
            assert_eq!(flags.unwrap().pooling, pooling);
            assert_eq!(named.unwrap().pooling, pooling);
        }
    }

    #[test]
    fn a_limit_comes_from_the_first_file_that_has_one() {
        let length =
            |value: Value| with(TOKENIZER_FILE, json!({"model_max_length": value})).unwrap().max_tokens;
        assert_eq!(length(json!(20)), 20);
        assert_eq!(length(json!(1e30)), 64);
        assert_eq!(length(json!(512)), 64);
        assert_eq!(with(ENCODER_FILE, json!({"max_seq_length": null})).unwrap().max_tokens, 64);
    }

    #[test]
    fn what_is_not_computed_is_refused_with_file_and_field() {
        let cases = [
            (MODULES_FILE, modules(&["Transformer", "Pooling", "Dense"]), "modules.json: field `type` is"),
            (MODULES_FILE, modules(&["Transformer"]), "modules.json: field `type` is"),
            (MODULES_FILE, modules(&[]), "modules.json: field `type` is"),
            (MODULES_FILE, json!({}), "modules.json: not a JSON object: expected a list"),
            (MODULES_FILE, json!([{"type": "mine.Transformer"}]), "modules.json: field `type` is `mine.Tr"),
            (
                POOLING_FILE,
                json!({"pooling_mode_lasttoken": true}),
                "field `pooling_mode_lasttoken` is `true`",
            ),
            (POOLING_FILE, json!({"pooling_mode": "weightedmean"}), "field `pooling_mode` is"),
            (POOLING_FILE, json!({"pooling_mode": ["mean", "max"]}), "field `pooling_mode` is `a list`"),
            (
                POOLING_FILE,
                json!({"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true}),
                "together",
            ),
            (POOLING_FILE, json!({}), "field `pooling_mode` is missing"),
            (POOLING_FILE, json!({"word_embedding_dimension": 33}), "it must be 32"),
            (ENCODER_FILE, json!({"max_seq_length": 65}), "a whole number from 1 to 64"),
            (ENCODER_FILE, json!({"max_seq_length": 0}), "a whole number from 1 to 64"),
            (ENCODER_FILE, json!({"do_lower_case": true}), "field `do_lower_case`"),
            (PROMPTS_FILE, json!({"default_prompt_name": "query"}), "field `default_prompt_name`"),
        ];
        for (file, value, words) in cases {
            let error = with(file, value).unwrap_err().to_string();
            assert!(error.starts_with(file) && error.contains(words), "{error}");
        }
        let mut elsewhere = modules(&["Transformer", "Pooling"]);
        elsewhere[1]["path"] = json!("../1_Pooling");
        let error = with(MODULES_FILE, elsewhere).unwrap_err().to_string();
        assert!(error.contains("field `[1].path`"), "{error}");
        assert!(matches!(read(&[]), Err(LoadError::Missing { name: MODULES_FILE })));
    }
}
