//! What an answer may be, and how it is to be read.

use bincode::{Decode, Encode};
use serde_json::{Map, Value};

use crate::RequestError;
use crate::constraint::Grammar;
use crate::tools::{ToolChoice, ToolDefinition, ToolFormat, validate_tools};

/// Most variables of a chat template beside the conversation.
pub const MAX_VARIABLES: usize = 16;
/// All of them as JSON.
pub const MAX_VARIABLES_BYTES: usize = 4 * 1024;

/// What a request demands of its answer, and what the model is told beside the conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Structure {
    /// Functions on offer.
    pub tools: Vec<ToolDefinition>,
    /// Whether they are to be called.
    pub choice: ToolChoice,
    /// Whether several may be called at once.
    pub parallel: bool,
    /// What the answer must be, if it is no call.
    pub grammar: Option<Grammar>,
    /// Variables of the chat template, as the text of a JSON object; empty for none.
    pub variables: String,
    /// The time of the request in seconds since 1970, for templates that write the date. Whoever resumes the answer
    /// must render the same prompt, so it is not a worker's clock that decides.
    pub now: Option<u64>,
}

impl Structure {
    /// Checks every bound that does not need the model; the error names the field.
    pub fn validate(&self) -> Result<(), RequestError> {
        validate_tools(&self.tools)?;
        self.choice.validate(&self.tools)?;
        if let Some(grammar) = &self.grammar {
            if matches!(self.choice, ToolChoice::Required | ToolChoice::Named(_)) {
                let why = "demands a call, so that the answer cannot follow a grammar of its own";
                return Err(RequestError::invalid("tool_choice", why));
            }
            grammar.validate().map_err(|e| e.at("response_format"))?;
        }
        self.variables().map(|_| ())
    }

    /// The template's variables.
    pub fn variables(&self) -> Result<Map<String, Value>, RequestError> {
        let refuse = |why: String| Err(RequestError::invalid("chat_template_kwargs", why));
        if self.variables.is_empty() {
            return Ok(Map::new());
        }
        if self.variables.len() > MAX_VARIABLES_BYTES {
            let found = self.variables.len();
            return refuse(format!("{found} bytes, at most {MAX_VARIABLES_BYTES} are allowed"));
        }
        match serde_json::from_str::<Map<String, Value>>(&self.variables) {
            Ok(variables) if variables.len() <= MAX_VARIABLES => Ok(variables),
            Ok(variables) => {
                refuse(format!("{} variables, at most {MAX_VARIABLES} are allowed", variables.len()))
            }
            Err(_) => refuse("not the text of a JSON object".into()),
        }
    }

    /// Whether the model may call functions.
    pub fn offers_calls(&self) -> bool {
        !self.tools.is_empty() && self.choice != ToolChoice::None
    }

    /// All texts that the model is told, with the path of their field.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (String, &str)> {
        let tools = self.tools.iter().enumerate().flat_map(|(i, tool)| {
            let path = |field| format!("tools[{i}].function.{field}");
            [
                (path("name"), Some(&tool.name)),
                (path("description"), tool.description.as_ref()),
                (path("parameters"), tool.parameters.as_ref()),
            ]
        });
        let tools = tools.filter_map(|(field, text)| Some((field, text?.as_str())));
        tools.chain([("chat_template_kwargs".to_owned(), self.variables.as_str())])
    }
}

/// How an answer is to be read: what its text may hold beside what is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub struct AnswerForm {
    /// How calls are written, where the model may make any.
    pub tools: Option<ToolFormat>,
    /// Whether it may hold thoughts.
    pub reasoning: Thinking,
}

/// Whether an answer may hold thoughts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub enum Thinking {
    /// No.
    #[default]
    Never,
    /// It may begin with some.
    Possible,
    /// It begins within some: the prompt opened them.
    Opened,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_bounded_and_an_object() {
        let of = |variables: &str| Structure { variables: variables.into(), ..Structure::default() };
        assert_eq!(of("").variables().unwrap().len(), 0);
        assert_eq!(of("{\"enable_thinking\": false}").variables().unwrap().len(), 1);
        for bad in ["[]", "{", &format!("{{\"a\": \"{}\"}}", "x".repeat(MAX_VARIABLES_BYTES))] {
            assert!(of(bad).validate().is_err(), "{bad:.20}");
        }
        let many: Vec<String> = (0..=MAX_VARIABLES).map(|i| format!("\"v{i}\": 1")).collect();
        assert!(of(&format!("{{{}}}", many.join(", "))).validate().is_err());
    }

    #[test]
    fn a_call_that_is_demanded_leaves_no_room_for_a_grammar() {
        let tool = ToolDefinition { name: "a".into(), description: None, parameters: None };
        let both = Structure {
            tools: vec![tool],
            choice: ToolChoice::Required,
            grammar: Some(Grammar::JsonObject),
            ..Structure::default()
        };
        assert!(both.validate().is_err());
        assert!(Structure { choice: ToolChoice::Auto, ..both }.validate().is_ok());
    }
}
