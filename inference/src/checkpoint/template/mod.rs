//! Chat templates: Jinja programs that come with a checkpoint.
//!
//! They run in minijinja, with what `transformers` gives them: trimmed blocks, loop controls,
//! `raise_exception`, `tojson` as Python's (`json`), Python's methods and way of printing (`python`),
//! and the variables of [`Prompt`]. A template is part of the model's digest, yet it is a program of a
//! stranger: it gets limits on fuel, output and depth.

mod json;
mod prompt;
mod python;
mod strftime;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::Value as Json;

pub use prompt::Prompt;

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
    /// A variable has a name that means something else.
    #[error("template variable `{name}` is set by the request itself; leave it out")]
    Reserved {
        /// Which.
        name: String,
    },
    /// A call of the conversation cannot be written.
    #[error("{0}")]
    Call(String),
    /// The template failed on a conversation.
    #[error("{0}")]
    Render(String),
}

/// A checkpoint's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and its like, as far as the model has them.
    tokens: Vec<(&'static str, String)>,
    source: String,
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
        environment.set_unknown_method_callback(python::method);
        environment.set_formatter(python::print);
        environment.add_filter("tojson", json::tojson);
        environment.add_test("iterable", python::is_iterable);
        environment.add_function("raise_exception", |why: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, why))
        });
        environment.set_fuel(Some(FUEL));
        environment.add_template_owned(NAME, without_generation(&source)).map_err(syntax)?;
        let tokens = ["bos_token", "eos_token", "unk_token", "pad_token"]
            .into_iter()
            .filter_map(|field| Some((field, special_token(&config, field)?)))
            .collect();
        Ok(Self { environment, tokens, source })
    }

    /// The template's text, by which a model's forms of calls and thoughts are recognised.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt text of a conversation.
    pub fn render(&self, prompt: &Prompt<'_>) -> Result<String, TemplateError> {
        let fail = |e: Error| TemplateError::Render(e.to_string());
        let template = self.environment.get_template(NAME).map_err(fail)?;
        let context = prompt.context()?.into_iter();
        let mut context: BTreeMap<String, Value> =
            context.map(|(name, json)| (name, prompt::value(json))).collect();
        for (name, token) in &self.tokens {
            context.insert((*name).into(), token.as_str().into());
        }
        if let Some(now) = prompt.now {
            let strftime = move |format: &str| strftime::strftime(format, now);
            context.insert("strftime_now".into(), Value::from_function(strftime));
        }
        let mut output = Limited(Vec::new());
        template.render_captured_to(context, &mut output).map_err(fail)?;
        String::from_utf8(output.0).map_err(|e| TemplateError::Render(e.to_string()))
    }
}

/// `transformers` lets templates mark what the model said, for training: `{% generation %}` to
/// `{% endgeneration %}`. Here these are blocks that change nothing.
fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let name = tag.trim_start_matches(['{', '%', '-', '+']).trim_end_matches(['}', '%', '-', '+']).trim();
        match name {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
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
fn special_token(config: &Json, field: &str) -> Option<String> {
    let value = config.get(field)?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
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
