//! Grammars of answers that are calls, for where a call is demanded, or one of two things.
//!
//! They are in the very form that the model was trained on and [`ToolParser`](super::ToolParser) reads, with
//! the name first, so that a call is known before its arguments are there.

use serde_json::{Value, json};

use super::{ToolChoice, ToolDefinition, ToolFormat};
use crate::constraint::{Grammar, GrammarError, with_bounded_space};

/// What the answer must be under this choice, or nothing if it may be anything. With `parallel`, several
/// calls may follow each other where not one function is named.
pub fn required(
    format: ToolFormat,
    choice: &ToolChoice,
    tools: &[ToolDefinition],
    parallel: bool,
) -> Result<Option<Grammar>, GrammarError> {
    let (chosen, parallel): (Vec<&ToolDefinition>, bool) = match choice {
        ToolChoice::Auto | ToolChoice::None => return Ok(None),
        ToolChoice::Required => (tools.iter().collect(), parallel),
        ToolChoice::Named(name) => (tools.iter().filter(|tool| tool.name == *name).collect(), false),
    };
    if chosen.is_empty() {
        return Err(GrammarError::Empty { what: "the list of functions to call" });
    }
    let grammar = Grammar::Lark(format!("start: calls\n{}", calls(format, &chosen, parallel)));
    grammar.validate()?;
    Ok(Some(grammar))
}

/// What the answer must be where the model chooses between a call and an answer of this form.
pub fn optional(
    format: ToolFormat,
    tools: &[ToolDefinition],
    parallel: bool,
    answer: &Grammar,
) -> Result<Grammar, GrammarError> {
    if format == ToolFormat::Llama3 {
        let why = "nothing marks the calls of this model, so that they cannot be told from an answer that has a form \
                   too; demand a call, or leave the functions out";
        return Err(GrammarError::Refused(why.into()));
    }
    let answer = match answer {
        Grammar::JsonObject => format!("%json {}", with_bounded_space(json!({"type": "object"}))),
        Grammar::JsonSchema(schema) => {
            let schema = serde_json::from_str(schema).map_err(|e| GrammarError::NotASchema(e.to_string()))?;
            format!("%json {}", with_bounded_space(schema))
        }
        Grammar::Regex(regex) => format!("/{}/", regex.replace('/', "\\/").replace('\n', "\\x0A")),
        Grammar::Choice(texts) => {
            let texts: Vec<String> =
                texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
            texts.join(" | ")
        }
        Grammar::Lark(_) => {
            let why = "a grammar of its own cannot be joined with functions that the model may call or not; demand a \
                       call, or leave the functions out";
            return Err(GrammarError::Refused(why.into()));
        }
    };
    let calls = calls(format, &tools.iter().collect::<Vec<_>>(), parallel);
    let grammar = Grammar::Lark(format!("start: calls | answer\nanswer: {answer}\n{calls}"));
    grammar.validate()?;
    Ok(grammar)
}

/// The rule `calls`, and those it needs.
fn calls(format: ToolFormat, chosen: &[&ToolDefinition], parallel: bool) -> String {
    let key = match format {
        ToolFormat::Hermes => "arguments",
        ToolFormat::Llama3 => "parameters",
    };
    // A rule for each function, so that references within its schema stay within it.
    let rules: Vec<String> = chosen.iter().enumerate().map(|(i, tool)| rule(i, tool, key)).collect();
    let any: Vec<String> = (0..chosen.len()).map(|i| format!("call-{i}")).collect();
    let any = any.join(" | ");
    let calls = match (format, parallel) {
        (ToolFormat::Hermes, false) => "marked",
        (ToolFormat::Hermes, true) => "marked (\"\\n\" marked)*",
        (ToolFormat::Llama3, false) => "call",
        (ToolFormat::Llama3, true) => "call (\"; \" call)*",
    };
    let marked = "marked: \"<tool_call>\\n\" call \"\\n</tool_call>\"";
    let marked = if format == ToolFormat::Hermes { marked } else { "" };
    format!("calls: {calls}\n{marked}\ncall: {any}\n{}\n", rules.join("\n"))
}

fn rule(index: usize, tool: &ToolDefinition, key: &str) -> String {
    let body = arguments(tool);
    // `{"name": "f", "arguments": ` as models write it; the schema's own text ends with the call.
    let head = format!("{{\"name\": {}, \"{key}\": ", Value::from(tool.name.as_str()));
    format!("call-{index}: {} %json {body} \"}}\"", Value::from(head))
}

fn arguments(tool: &ToolDefinition) -> Value {
    let mut schema = tool.schema();
    if let Some(fields) = schema.as_object_mut() {
        // A function's arguments are an object, even where the schema forgets to say so.
        fields.entry("type").or_insert_with(|| "object".into());
    }
    with_bounded_space(schema)
}

#[cfg(all(test, feature = "engine"))]
mod tests {
    use super::*;
    use crate::constraint::{Constraint, Vocabulary};
    use crate::tools::{ToolEvent, ToolParser};

    const END: u32 = 256;

    fn vocabulary() -> Vocabulary {
        let words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).chain([Vec::new()]).collect();
        Vocabulary::new(words.iter().map(Vec::as_slice), [END]).unwrap()
    }

    fn tools() -> Vec<ToolDefinition> {
        let tool = |name: &str, parameters: Option<&str>| ToolDefinition {
            name: name.into(),
            description: None,
            parameters: parameters.map(str::to_owned),
        };
        let city = r##"{"$defs": {"c": {"type": "string", "maxLength": 9}}, "properties":
            {"city": {"$ref": "#/$defs/c"}, "days": {"type": "integer"}}, "required": ["city"],
            "additionalProperties": false}"##;
        vec![tool("weather", Some(city)), tool("now", Some(r#"{"additionalProperties": false}"#))]
    }

    /// Follows the grammar along a text as far as it goes; whether the text is all of an answer.
    fn follows(grammar: &Grammar, text: &str) -> Result<bool, usize> {
        let mut constraint = Constraint::new(&vocabulary(), grammar).unwrap();
        for (i, byte) in text.bytes().enumerate() {
            constraint.accept(u32::from(byte)).map_err(|_| i)?;
        }
        Ok(constraint.is_complete().unwrap())
    }

    fn grammar(format: ToolFormat, choice: ToolChoice, parallel: bool) -> Grammar {
        required(format, &choice, &tools(), parallel).unwrap().unwrap()
    }

    #[test]
    fn an_answer_under_the_grammar_is_read_back_as_calls() {
        let weather = r#"{"name": "weather", "K": {"city": "Bern", "days": 3}}"#;
        let now = r#"{"name": "now", "K": {}}"#;
        for (format, key, separator) in
            [(ToolFormat::Hermes, "arguments", "\n"), (ToolFormat::Llama3, "parameters", "; ")]
        {
            let call = |call: &str| {
                let call = call.replace('K', key);
                let marked = format!("<tool_call>\n{call}\n</tool_call>");
                if format == ToolFormat::Hermes { marked } else { call }
            };
            let any = grammar(format, ToolChoice::Required, true);
            let two = format!("{}{separator}{}", call(weather), call(now));
            for (text, calls) in [(call(weather), 1), (call(now), 1), (two.clone(), 2)] {
                assert_eq!(follows(&any, &text), Ok(true), "{text}");
                let mut parser = ToolParser::new(format, ["weather", "now"]);
                let mut events = parser.push(&text);
                events.extend(parser.finish());
                let whole = |event: &&ToolEvent| matches!(event, ToolEvent::CallEnded { whole: true, .. });
                assert_eq!(events.iter().filter(whole).count(), calls);
                assert!(!events.iter().any(|event| matches!(event, ToolEvent::Text(_))), "{events:?}");
            }
            assert!(follows(&grammar(format, ToolChoice::Required, false), &two).is_err());
            let named = grammar(format, ToolChoice::Named("now".into()), true);
            assert_eq!(follows(&named, &call(now)), Ok(true));
            assert!(follows(&named, &call(weather)).is_err());
            assert!(follows(&any, "Hello").is_err());
            assert!(follows(&any, &call(r#"{"name": "weather", "K": {"days": 3}}"#)).is_err());
        }
    }

    #[test]
    fn a_form_and_functions_leave_the_model_the_choice() {
        let schema = r#"{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
            "additionalProperties": false}"#;
        for (answer, good, bad) in [
            (Grammar::JsonSchema(schema.into()), "{\"a\": 7}", "{\"b\": 7}"),
            (Grammar::JsonObject, "{\"b\": [1, 2]}", "[1]"),
            (Grammar::Regex("a/b\nc+".into()), "a/b\ncc", "a/bc"),
            (Grammar::Choice(vec!["left \"or\"".into(), "right".into()]), "left \"or\"", "up"),
        ] {
            let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
            let grammar = optional(ToolFormat::Hermes, &tools(), false, &answer).unwrap();
            assert_eq!(follows(&grammar, good), Ok(true), "{answer:?}");
            assert_eq!(follows(&grammar, call), Ok(true), "{answer:?}");
            assert_ne!(follows(&grammar, bad), Ok(true), "{answer:?}");
            let unmarked = optional(ToolFormat::Llama3, &tools(), false, &answer);
            assert!(matches!(unmarked, Err(GrammarError::Refused(_))));
        }
        let own = optional(ToolFormat::Hermes, &tools(), false, &Grammar::Lark("start: \"x\"".into()));
        assert!(matches!(own, Err(GrammarError::Refused(_))));
    }

    #[test]
    fn without_a_demand_there_is_no_grammar() {
        for choice in [ToolChoice::Auto, ToolChoice::None] {
            assert_eq!(required(ToolFormat::Hermes, &choice, &tools(), true), Ok(None));
        }
        assert!(required(ToolFormat::Hermes, &ToolChoice::Required, &[], true).is_err());
    }
}
