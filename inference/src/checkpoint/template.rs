//! Chat templates: Jinja programs that come with a checkpoint.
//!
//! They run in minijinja with Python's string methods and with what `transformers` adds
//! (`raise_exception`, block trimming). A template is part of the model's digest, yet it is a
//! program of a stranger: it gets a fuel limit and an output limit. `strftime_now` is not offered:
//! a prompt that depends on the clock would differ when another worker resumes the answer.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use minijinja_contrib::pycompat;
use serde_json::Value as Json;

use crate::Message;

/// Largest template; the longest published ones have about 20 kB.
const MAX_TEMPLATE_BYTES: usize = 256 * 1024;
/// Instructions per rendering: a loop over the longest conversation with room to spare.
const FUEL: u64 = 2_000_000;
/// Largest prompt text: twice what messages may hold.
const MAX_OUTPUT_BYTES: usize = 2 * crate::limits::MAX_CONTENT_BYTES;
const NAME: &str = "chat";

/// Why a chat template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// There is none.
    #[error(
        "neither chat_template.jinja nor field `chat_template` of tokenizer_config.json exists; a chat needs one"
    )]
    Missing,
    /// Too long.
    #[error("{0} bytes, at most {MAX_TEMPLATE_BYTES} are allowed")]
    TooLarge(usize),
    /// A file is not what it should be.
    #[error("tokenizer_config.json, field `{field}`: {why}")]
    Config {
        /// The field.
        field: &'static str,
        /// What was expected.
        why: String,
    },
    /// Not a template.
    #[error("the template does not parse: {0}")]
    Syntax(String),
    /// The template failed on a conversation.
    #[error("{0}")]
    Render(String),
}

/// A checkpoint's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// From `tokenizer_config.json` and, where there is one, `chat_template.jinja`, which wins.
    pub fn parse(tokenizer_config: Option<&[u8]>, file: Option<&[u8]>) -> Result<Self, TemplateError> {
        let config: Json = match tokenizer_config {
            None => Json::Null,
            Some(bytes) => serde_json::from_slice(bytes).map_err(|e| TemplateError::Config {
                field: "(the whole file)",
                why: format!("not JSON: {e}"),
            })?,
        };
        let source = match file {
            Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            None => template_of(&config)?,
        };
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(TemplateError::TooLarge(source.len()));
        }
        let syntax = |e: Error| TemplateError::Syntax(e.to_string());
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(syntax)?,
        );
        environment.set_unknown_method_callback(pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |why: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, why))
        });
        environment.set_fuel(Some(FUEL));
        environment.add_template_owned(NAME, source).map_err(syntax)?;
        let token = |field: &str| special_token(&config, field);
        Ok(Self { environment, bos_token: token("bos_token"), eos_token: token("eos_token") })
    }

    /// The prompt text of a conversation, up to where the model's turn begins.
    pub fn render(&self, messages: &[Message]) -> Result<String, TemplateError> {
        let fail = |e: Error| TemplateError::Render(e.to_string());
        let template = self.environment.get_template(NAME).map_err(fail)?;
        let conversation: Vec<Value> = messages
            .iter()
            .map(|m| context! { role => m.role.as_str(), content => m.content.as_str() })
            .collect();
        let mut output = Limited(Vec::new());
        template
            .render_captured_to(
                context! {
                    messages => conversation,
                    add_generation_prompt => true,
                    bos_token => self.bos_token.as_str(),
                    eos_token => self.eos_token.as_str(),
                },
                &mut output,
            )
            .map_err(fail)?;
        String::from_utf8(output.0).map_err(|e| TemplateError::Render(e.to_string()))
    }
}

/// A string, or a list of named templates of which `default` is for chats.
fn template_of(config: &Json) -> Result<String, TemplateError> {
    let field = "chat_template";
    match config.get(field) {
        None | Some(Json::Null) => Err(TemplateError::Missing),
        Some(Json::String(source)) => Ok(source.clone()),
        Some(Json::Array(all)) => all
            .iter()
            .find(|t| t.get("name").is_some_and(|n| n == "default"))
            .and_then(|t| t.get("template")?.as_str())
            .map(str::to_owned)
            .ok_or_else(|| TemplateError::Config { field, why: "no template named `default`".into() }),
        Some(_) => {
            Err(TemplateError::Config { field, why: "must be a text or a list of named templates".into() })
        }
    }
}

/// Special tokens are a text or an object with `content`.
fn special_token(config: &Json, field: &str) -> String {
    let value = config.get(field);
    let text = value.and_then(|v| v.as_str().or_else(|| v.get("content")?.as_str()));
    text.unwrap_or_default().to_owned()
}

/// A writer that refuses to grow beyond the output limit.
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other(format!("the prompt grows beyond {MAX_OUTPUT_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChatRole;

    fn render(source: &str) -> Result<String, TemplateError> {
        let messages = [Message { role: ChatRole::User, content: " Hi ".into() }];
        ChatTemplate::parse(None, Some(source.as_bytes()))?.render(&messages)
    }

    #[test]
    fn blocks_are_trimmed_and_python_methods_work() {
        let text = render(
            "{% for m in messages %}\n  {% if true %}\n[{{ m.content.strip() }}]\n  {% endif %}\n{% endfor %}\n",
        );
        assert_eq!(text.unwrap(), "[Hi]\n");
    }

    #[test]
    fn a_template_may_refuse_a_conversation() {
        let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
        assert!(error.to_string().contains("roles must alternate"), "{error}");
    }

    #[test]
    fn a_template_cannot_run_or_write_without_end() {
        let spin = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert!(matches!(render(spin), Err(TemplateError::Render(_))));
        let flood = "{% for a in range(9999) %}{{ 'x' * 99 }}{% endfor %}";
        let error = render(flood).unwrap_err().to_string();
        assert!(!error.is_empty());
    }

    #[test]
    fn a_missing_template_and_a_broken_one_are_told_apart() {
        assert!(matches!(ChatTemplate::parse(Some(b"{}"), None), Err(TemplateError::Missing)));
        assert!(matches!(render("{% for"), Err(TemplateError::Syntax(_))));
        let list = br#"{"chat_template": [{"name": "default", "template": "ok"}]}"#;
        assert_eq!(ChatTemplate::parse(Some(list), None).unwrap().render(&[]).unwrap(), "ok");
    }
}
