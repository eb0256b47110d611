//! From a request to a sequence: rendering, tokenising, and what the answer must be.

use std::sync::Arc;

use super::{Begun, Frontend, Writer, count};
use crate::checkpoint::Prompt;
use crate::constraint::{Constraint, Grammar, Vocabulary};
use crate::scheduler::Sequence;
use crate::text::TextStream;
use crate::tools::{ToolChoice, grammar};
use crate::{AnswerForm, GenerateRequest, RequestError, Structure, Thinking};

pub(super) fn start(frontend: &Arc<Frontend>, request: &GenerateRequest) -> Result<Begun, RequestError> {
    request.validate()?;
    if request.model != frontend.info.digest {
        return Err(RequestError::UnknownModel);
    }
    let text = render(frontend, request)?;
    let ids = frontend.tokenizer.encode(&text).map_err(|e| RequestError::Template { why: e.to_string() })?;
    let context = frontend.info.context as usize;
    let prompt = ids.len();
    let prefix = request.prefix.as_slice();
    if prompt == 0 {
        return Err(RequestError::invalid("messages", "the chat template renders them to nothing"));
    }
    if prompt >= context {
        let prompt = count(prompt + prefix.len());
        return Err(RequestError::ContextExceeded { prompt, limit: count(context) });
    }
    let limit = request.sampling.max_tokens.map_or(context, |n| n as usize).min(context - prompt);
    if prefix.len() > limit {
        let why = format!("{} tokens, but the whole answer may have {limit}", prefix.len());
        return Err(RequestError::invalid("prefix", why));
    }
    frontend.check_ids("prefix", prefix)?;
    let sampling = &request.sampling;
    sampling.validate_ids(frontend.vocab)?;
    let ends = |id: &u32| frontend.end_tokens.contains(id) || sampling.stop_token_ids.contains(id);
    if let Some(id) = prefix.iter().copied().find(ends) {
        let why = format!("token {id} ends an answer and cannot be continued");
        return Err(RequestError::invalid("prefix", why));
    }
    let form = form(frontend, &request.structure, &text)?;
    let demanded = demanded(&request.structure, form)?;
    let mut constraint = match &demanded {
        Some((grammar, field)) => Some(constrain(frontend, grammar, form, field)?),
        None => None,
    };
    let mut stream = TextStream::new(&sampling.stop);
    for &id in prefix {
        stream.push(frontend.tokenizer.bytes(id));
        if let Some(constraint) = &mut constraint {
            constraint.accept(id).map_err(|e| RequestError::invalid("prefix", e.to_string()))?;
        }
    }
    let writer = Writer {
        frontend: Arc::clone(frontend),
        prompt,
        made: prefix.len(),
        constraint,
        stop_token_ids: sampling.stop_token_ids.clone(),
        text: stream,
    };
    let at_end = writer.is_complete();
    let sequence = Sequence { prompt: ids, prefix: prefix.to_vec(), limit: count(limit), at_end };
    Ok(Begun { sequence, form, grammar: demanded.map(|(grammar, _)| grammar), writer })
}

/// The text of a conversation, up to where the model's turn begins.
pub(super) fn render(frontend: &Frontend, request: &GenerateRequest) -> Result<String, RequestError> {
    let structure = &request.structure;
    let messages = request.messages.iter().enumerate().flat_map(|(i, m)| m.texts(format!("messages[{i}]")));
    for (field, text) in messages.chain(structure.texts()) {
        if let Some(token) = frontend.tokenizer.control_token_in(text) {
            let why = format!("contains {token:?}, which structures the conversation; remove it");
            return Err(RequestError::invalid(field, why));
        }
    }
    let variables = structure.variables()?;
    let tools = if structure.offers_calls() { structure.tools.as_slice() } else { &[] };
    let prompt = Prompt {
        messages: &request.messages,
        tools,
        variables: (!variables.is_empty()).then_some(&variables),
        now: structure.now,
        add_generation_prompt: true,
    };
    frontend
        .template
        .render(&prompt)
        .map_err(|e| RequestError::Template { why: e.to_string().chars().take(200).collect() })
}

/// How the answer to a rendered prompt is to be read.
fn form(frontend: &Frontend, structure: &Structure, prompt: &str) -> Result<AnswerForm, RequestError> {
    let tools = match structure.offers_calls() {
        false => None,
        true if frontend.tools.is_some() => frontend.tools,
        true => {
            let why = "the model's chat template knows no functions, or a form of calls that is not supported; \
                       ask another model, or leave `tools` out";
            return Err(RequestError::invalid("tools", why));
        }
    };
    let reasoning = match frontend.reasoning {
        None => Thinking::Never,
        Some(marks) if marks.opened_by(prompt) => Thinking::Opened,
        Some(_) => Thinking::Possible,
    };
    Ok(AnswerForm { tools, reasoning })
}

/// What the answer must be, if it may not be anything, and which field says so.
fn demanded(
    structure: &Structure,
    form: AnswerForm,
) -> Result<Option<(Grammar, &'static str)>, RequestError> {
    let own = structure.grammar.as_ref();
    let Some(format) = form.tools else {
        return Ok(own.map(|grammar| (grammar.clone(), "response_format")));
    };
    let Structure { tools, choice, parallel, .. } = structure;
    match (choice, own) {
        (ToolChoice::Auto, Some(grammar)) => {
            let either = grammar::optional(format, tools, *parallel, grammar);
            Ok(Some((either.map_err(|e| e.at("response_format"))?, "response_format")))
        }
        // A demanded call leaves no text that a form could be about.
        _ => {
            let grammar = grammar::required(format, choice, tools, *parallel).map_err(|e| e.at("tools"))?;
            Ok(grammar.map(|grammar| (grammar, "tools")))
        }
    }
}

/// The state of an answer that must follow a grammar.
fn constrain(
    frontend: &Frontend,
    grammar: &Grammar,
    form: AnswerForm,
    field: &str,
) -> Result<Constraint, RequestError> {
    let vocabulary = frontend.vocabulary.get_or_init(|| {
        let tokens = (0..count(frontend.vocab)).map(|id| frontend.tokenizer.bytes(id));
        Vocabulary::new(tokens, frontend.end_tokens.iter().copied())
    });
    let vocabulary = vocabulary.as_ref().map_err(|e| RequestError::invalid(field, e.to_string()))?;
    let constraint = match (frontend.reasoning, form.reasoning) {
        (Some(marks), reasoning) => {
            Constraint::after_reasoning(vocabulary, grammar, marks, reasoning == Thinking::Opened)
        }
        (None, _) => Constraint::new(vocabulary, grammar),
    };
    constraint.map_err(|e| e.at(field))
}
