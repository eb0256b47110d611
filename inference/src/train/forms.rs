//! Answers in JSON.
//!
//! Three ways to ask: the question names the keys, it asks for JSON alone, or it says nothing and a grammar
//! demands the form. Of keys that the question does not name, nobody can know the name: there the key is read
//! but not trained, as a grammar would write it, and the model learns to put the right value after any key.

use serde_json::{Map, Value, json};

use super::corpus::{Kind, Row, Span};
use super::manners::Spaced;
use super::source::{Source, Wordings, capital};
use super::tasks::{Task, thinking};
use super::wordings::{CITIES, ITEMS, NAMES};
use crate::{ChatRole, Message};

/// How the form is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mention {
    /// With the names of the keys.
    Keys,
    /// As JSON, no more.
    Json,
    /// Not at all.
    Nothing,
}

/// A task whose answer is JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct Formed {
    /// The question.
    pub user: String,
    /// The answer.
    pub answer: Vec<Span>,
    /// The answer's value.
    pub value: Value,
    /// A schema that demands it.
    pub schema: Value,
}

impl Formed {
    /// As a row of its own.
    pub fn row(&self) -> Row {
        Row {
            kind: Kind::Form,
            messages: vec![Message::new(ChatRole::User, self.user.as_str())],
            tools: Vec::new(),
            answer: self.answer.clone(),
        }
    }
}

const KEYS: Wordings = Wordings {
    trained: &[
        " Answer in JSON with the keys {k}.",
        " Reply as JSON: {s}",
        " Use the JSON keys {k}.",
        " Answer in JSON like {s}.",
        " Give me JSON with {k}.",
        " Return a JSON object with {k}.",
        " Format: {s}",
        " JSON keys: {k}",
    ],
    held_out: &[" Answer as JSON with the keys {k}.", " Reply in JSON like {s}."],
};
const JSON: Wordings = Wordings {
    trained: &[
        " Answer in JSON.",
        " Reply in JSON.",
        " Give me JSON.",
        " Use JSON.",
        " Answer with a JSON object.",
        " Return JSON only.",
        " As JSON, please.",
        " json",
    ],
    held_out: &[" Respond in JSON.", " Write the answer as JSON."],
};

impl Source {
    /// Asks a task for JSON.
    pub fn formed(&mut self, mention: Mention, task: &Task) -> Formed {
        let mut fields: Vec<(String, Value)> = Vec::new();
        if self.rng.chance(30) {
            let from = self.rng.below(task.fields.len() + 1);
            fields
                .extend(task.fields.iter().skip(from).map(|(key, value)| ((*key).to_owned(), value.clone())));
        }
        let anonymous = fields.is_empty() && mention == Mention::Json && self.rng.chance(70);
        let key = loop {
            let key = if anonymous { "answer".to_owned() } else { self.key(task.keys) };
            if fields.iter().all(|(other, _)| *other != key) {
                break key;
            }
        };
        fields.push((key, task.value.clone()));
        let quoted = mention != Mention::Keys && !anonymous && task.value.is_number() && self.rng.chance(20);
        if quoted && let Some((_, value)) = fields.last_mut() {
            *value = Value::from(value.to_string());
        }
        self.asked(mention, anonymous, quoted, &task.user, &thinking(&task.thought), fields)
    }

    /// A sentence whose parts are to be taken out.
    pub fn extraction(&mut self, mention: Mention) -> Formed {
        let name = capital(&self.known_or_invented(NAMES, 40));
        let city = capital(&self.known_or_invented(CITIES, 40));
        let number = self.rng.between(2, 99);
        let item = self.known_or_invented(ITEMS, 60);
        let person = self.rng.chance(60);
        let wordings: &[&str] = match person {
            true => &[
                "{n} is {a} years old and lives in {c}.",
                "{n} from {c} is {a}.",
                "{n}, aged {a}, lives in {c}.",
                "My name is {n}, I am {a} and I live in {c}.",
                "In {c} lives {n}, who is {a} years old.",
            ],
            false => &[
                "{n} from {c} orders {a} of {i}.",
                "Please send {a} {i} to {n} in {c}.",
                "{n} in {c} buys {a} {i}.",
                "Send {n} {a} pieces of {i} to {c}.",
            ],
        };
        let text = self
            .rng
            .pick(wordings)
            .replace("{n}", &name)
            .replace("{a}", &number.to_string())
            .replace("{c}", &city)
            .replace("{i}", &item);
        let named = |key: &str, value: Value| (key.to_owned(), value);
        let mut fields = vec![named("name", json!(name))];
        match person {
            true => fields.push(named("age", json!(number))),
            false => fields.extend([named("item", json!(item)), named("quantity", json!(number))]),
        }
        fields.push(named("city", json!(city)));
        // Without names of keys, all are wanted.
        if mention == Mention::Keys {
            self.rng.shuffle(&mut fields);
            fields.truncate(1 + self.rng.below(fields.len()));
        }
        let intro =
            self.rng.pick(&["Extract the data: ", "Extract: ", "Read this: ", "", "Take out the details: "]);
        self.asked(mention, mention == Mention::Json, false, &format!("{intro}{text}"), "", fields)
    }

    fn key(&mut self, keys: &[&str]) -> String {
        let known = self.rng.pick(keys).to_owned();
        match self.rng.below(100) {
            0..60 => known,
            60..75 => format!("{known}_{}", self.invented()),
            _ => self.invented(),
        }
    }

    fn asked(
        &mut self,
        mention: Mention,
        certain: bool,
        quoted: bool,
        question: &str,
        thinking: &str,
        fields: Vec<(String, Value)>,
    ) -> Formed {
        let mut user = question.to_owned();
        let demand = match mention {
            Mention::Keys => self.wording(&KEYS),
            Mention::Json => self.wording(&JSON),
            Mention::Nothing => "",
        };
        user.push_str(&demand.replace("{k}", &list(&fields)).replace("{s}", &shape(&fields)));
        let known = certain || mention == Mention::Keys;
        let properties: Map<String, Value> =
            fields.iter().map(|(key, value)| (key.clone(), schema_of(value))).collect();
        let required: Vec<&String> = fields.iter().map(|(key, _)| key).collect();
        let schema = json!({"type": "object", "properties": properties, "required": required,
                            "additionalProperties": false});
        let mut answer = vec![Span::trained(thinking)];
        let last = fields.len().saturating_sub(1);
        for (at, (key, value)) in fields.iter().enumerate() {
            // The brace is trained wherever the question speaks of JSON.
            let begins = known || at == 0 && mention == Mention::Json;
            answer.push(Span { text: if at == 0 { "{\"" } else { ", \"" }.to_owned(), trained: begins });
            answer.push(Span { text: key.clone(), trained: known });
            let value = value.to_string_spaced();
            match value.strip_prefix('"').filter(|_| quoted && at == last) {
                Some(rest) => {
                    answer.push(Span { text: "\": \"".to_owned(), trained: false });
                    answer.push(Span::trained(rest));
                }
                None => answer.push(Span::trained(&format!("\": {value}"))),
            }
        }
        if let Some(span) = answer.last_mut() {
            span.text.push('}');
        }
        Formed { user, answer, value: Value::Object(fields.into_iter().collect()), schema }
    }
}

/// `"a", "b" and "c"`.
fn list(fields: &[(String, Value)]) -> String {
    let names: Vec<String> = fields.iter().map(|(key, _)| format!("\"{key}\"")).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

/// `{"a": number, "b": string}`.
fn shape(fields: &[(String, Value)]) -> String {
    let kind = |value: &Value| match value {
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::Array(_) => "list",
        _ => "string",
    };
    let fields: Vec<String> =
        fields.iter().map(|(key, value)| format!("\"{key}\": {}", kind(value))).collect();
    format!("{{{}}}", fields.join(", "))
}

fn schema_of(value: &Value) -> Value {
    match value {
        Value::Bool(_) => json!({"type": "boolean"}),
        Value::Number(_) => json!({"type": "integer"}),
        Value::Array(_) => json!({"type": "array", "items": {"type": "integer"}}),
        _ => json!({"type": "string"}),
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::{Rng, Split};
    use super::*;

    #[test]
    fn every_answer_is_its_value_and_follows_its_schema() {
        use crate::constraint::Grammar;
        for split in [Split::Trained, Split::HeldOut] {
            let mut source = Source { rng: Rng::new(2), split };
            for mention in [Mention::Keys, Mention::Json, Mention::Nothing] {
                for _ in 0..300 {
                    let task = source.arithmetic();
                    for formed in [source.formed(mention, &task), source.extraction(mention)] {
                        let text: String = formed.answer.iter().map(|span| span.text.as_str()).collect();
                        let said = text.rsplit("</think>\n").next().unwrap();
                        assert_eq!(serde_json::from_str::<Value>(said).unwrap(), formed.value, "{text}");
                        Grammar::JsonSchema(formed.schema.to_string()).validate().unwrap();
                        if mention == Mention::Keys {
                            let keys = formed.value.as_object().unwrap().keys();
                            assert!(keys.into_iter().all(|key| formed.user.contains(key.as_str())));
                            assert!(formed.answer.iter().all(|span| span.trained));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_key_that_nobody_named_is_not_trained() {
        let mut source = Source { rng: Rng::new(2), split: Split::Trained };
        for _ in 0..200 {
            let task = source.arithmetic();
            let formed = source.formed(Mention::Nothing, &task);
            let trained: String =
                formed.answer.iter().filter(|span| span.trained).map(|span| span.text.as_str()).collect();
            assert!(!trained.contains("{\""), "{trained}");
            assert!(trained.ends_with('}'));
        }
    }
}
