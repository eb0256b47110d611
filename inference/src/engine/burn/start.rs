//! From a request to a sequence: rendering, tokenising, and what the answer must be.

use std::sync::Arc;

use super::answer::BurnAnswer;
use super::{Shared, count};
use crate::checkpoint::Prompt;
use crate::constraint::{Constraint, Grammar, Vocabulary};
use crate::engine::{Sampler, Started};
use crate::scheduler::Sequence;
use crate::text::TextStream;
use crate::tools::{ToolChoice, grammar};
use crate::{AnswerForm, GenerateRequest, RequestError, Structure, Thinking};

pub(super) fn start(shared: &Arc<Shared>, request: &GenerateRequest) -> Result<Started, RequestError> {
    request.validate()?;
    if request.model != shared.info.digest {
        return Err(RequestError::UnknownModel);
    }
    let text = render(shared, request)?;
    let ids = shared.tokenizer.encode(&text).map_err(|e| RequestError::Template { why: e.to_string() })?;
    let context = shared.config.dimensions.max_position_embeddings;
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
    shared.check_ids("prefix", prefix)?;
    let sampling = &request.sampling;
    sampling.validate_ids(shared.config.dimensions.vocab_size)?;
    let ends = |id: &u32| shared.config.end_tokens.contains(id) || sampling.stop_token_ids.contains(id);
    if let Some(id) = prefix.iter().copied().find(ends) {
        let why = format!("token {id} ends an answer and cannot be continued");
        return Err(RequestError::invalid("prefix", why));
    }
    let form = form(shared, &request.structure, &text)?;
    let mut constraint = constraint(shared, &request.structure, form)?;
    let mut stream = TextStream::new(&sampling.stop);
    for &id in prefix {
        stream.push(shared.tokenizer.bytes(id));
        if let Some(constraint) = &mut constraint {
            constraint.accept(id).map_err(|e| RequestError::invalid("prefix", e.to_string()))?;
        }
    }
    let answer = BurnAnswer {
        shared: Arc::clone(shared),
        prompt,
        made: prefix.len(),
        sampler: Sampler::new(sampling, &ids, prefix),
        constraint,
        stop_token_ids: sampling.stop_token_ids.clone(),
        logprobs: sampling.logprobs,
        text: stream,
    };
    let at_end = answer.is_complete();
    let sequence = Sequence { prompt: ids, prefix: prefix.to_vec(), limit: count(limit), at_end };
    Ok(Started { sequence, form, answer: Box::new(answer) })
}

/// The text of a conversation, up to where the model's turn begins.
pub(super) fn render(shared: &Shared, request: &GenerateRequest) -> Result<String, RequestError> {
    let structure = &request.structure;
    let messages = request.messages.iter().enumerate().flat_map(|(i, m)| m.texts(format!("messages[{i}]")));
    for (field, text) in messages.chain(structure.texts()) {
        if let Some(token) = shared.tokenizer.control_token_in(text) {
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
    shared
        .template
        .render(&prompt)
        .map_err(|e| RequestError::Template { why: e.to_string().chars().take(200).collect() })
}

/// How the answer to a rendered prompt is to be read.
fn form(shared: &Shared, structure: &Structure, prompt: &str) -> Result<AnswerForm, RequestError> {
    let tools = match structure.offers_calls() {
        false => None,
        true if shared.tools.is_some() => shared.tools,
        true => {
            let why = "the model's chat template knows no functions, or a form of calls that is not supported; \
                       ask another model, or leave `tools` out";
            return Err(RequestError::invalid("tools", why));
        }
    };
    let reasoning = match shared.reasoning {
        None => Thinking::Never,
        Some(marks) if marks.opened_by(prompt) => Thinking::Opened,
        Some(_) => Thinking::Possible,
    };
    Ok(AnswerForm { tools, reasoning })
}

/// What the answer must be, if it may not be anything.
fn constraint(
    shared: &Shared,
    structure: &Structure,
    form: AnswerForm,
) -> Result<Option<Constraint>, RequestError> {
    let demanded = match (&structure.grammar, form.tools) {
        (Some(grammar), _) => Some((grammar.clone(), "response_format")),
        (None, Some(format)) => {
            let grammar = grammar::required(format, &structure.choice, &structure.tools, structure.parallel);
            grammar.map_err(|e| e.at("tools"))?.map(|grammar| (grammar, "tools"))
        }
        (None, None) => None,
    };
    demanded.map(|(grammar, field)| constrain(shared, structure, &grammar, form, field)).transpose()
}

fn constrain(
    shared: &Shared,
    structure: &Structure,
    grammar: &Grammar,
    form: AnswerForm,
    field: &str,
) -> Result<Constraint, RequestError> {
    if structure.grammar.is_some() && structure.choice == ToolChoice::Auto && form.tools.is_some() {
        let why = "an answer that follows a form cannot be a call too; set `tool_choice` to \"none\" or leave it out";
        return Err(RequestError::invalid(field, why));
    }
    let vocabulary = shared.vocabulary.get_or_init(|| {
        let tokens = (0..count(shared.config.dimensions.vocab_size)).map(|id| shared.tokenizer.bytes(id));
        Vocabulary::new(tokens, shared.config.end_tokens.iter().copied())
    });
    let vocabulary = vocabulary.as_ref().map_err(|e| RequestError::invalid(field, e.to_string()))?;
    let constraint = match (shared.reasoning, form.reasoning) {
        (Some(marks), reasoning) => {
            Constraint::after_reasoning(vocabulary, grammar, marks, reasoning == Thinking::Opened)
        }
        (None, _) => Constraint::new(vocabulary, grammar),
    };
    constraint.map_err(|e| e.at(field))
}
