//! From a [`Grammar`] to a parser, in bounded time and memory.
//!
//! Three things stand against a grammar that explodes. [`Grammar::validate`] bounds the source;
//! [`limits`] bounds what the compiler may build from it and what the parser may do per token; and
//! compilation has a thread of its own, whose stack is large enough for the deepest chain of references
//! that the bounds let through. An overflowing stack would end the worker, not the request.

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{TokEnv, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::grammar::{Grammar, GrammarError, schema, with_bounded_space};
use crate::reasoning::ReasoningMarks;

/// Stack of the compiling thread. Pages that are not touched cost nothing.
const STACK_BYTES: usize = 64 * 1024 * 1024;
/// Longest message of the compiler that is passed on.
const MAX_WHY: usize = 300;

/// Bounds on one grammar.
pub(super) fn limits() -> ParserLimits {
    ParserLimits {
        // Enough for the schemas of large public APIs, some tens of milliseconds.
        initial_lexer_fuel: 1_000_000,
        max_grammar_size: 200_000,
        // At one to two kilobytes each; ordinary schemas need some hundreds.
        max_lexer_states: 20_000,
        // Per token: about 15 ms of lexing and 3 ms of parsing, where usual masks take well under one.
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_items_in_row: 2_000,
        // It would walk the whole vocabulary once per large regular expression.
        precompute_large_lexemes: false,
        // Errors travel to the asker, who knows the grammar.
        verbose_errors: false,
    }
}

/// A parser of answers in this grammar, after thoughts if there may be any.
pub(super) fn compile(
    factory: &ParserFactory,
    grammar: &Grammar,
    thoughts: Option<Thoughts>,
) -> Result<Matcher, GrammarError> {
    grammar.validate()?;
    let mut grammar = top_level(grammar)?;
    if let Some(thoughts) = thoughts {
        after(thoughts, &mut grammar);
    }
    let compile = || match factory.create_parser(grammar) {
        Ok(parser) => Ok(Matcher::new(Ok(parser))),
        Err(e) => Err(GrammarError::Refused(brief(&e.to_string()))),
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES);
        let running = thread
            .spawn_scoped(scope, compile)
            .map_err(|e| GrammarError::Refused(format!("no thread to compile it in: {e}")))?;
        running.join().map_err(|_| GrammarError::Refused("the compiler failed on it".into()))?
    })
}

/// Thoughts that come before what the grammar is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thoughts {
    pub(super) marks: ReasoningMarks,
    /// The prompt ends within them.
    pub(super) opened: bool,
}

/// Lets any text up to the closing mark come before what the grammar describes.
fn after(thoughts: Thoughts, grammar: &mut TopLevelGrammar) {
    let ReasoningMarks { open, close } = thoughts.marks;
    let (open, close) = (Value::from(open), Value::from(close));
    let start = match thoughts.opened {
        true => "start: thoughts GAP @answer".to_owned(),
        // Without thoughts nothing comes before the answer, not even space.
        false => format!("start: ({open} thoughts GAP)? @answer"),
    };
    let prelude = format!("{start}\nthoughts[suffix={close}]: /(?s:.*)/\nGAP: /[\\x20\\n]{{0,8}}/\n");
    if let Some(answer) = grammar.grammars.first_mut() {
        answer.name = Some("answer".into());
    }
    grammar.grammars.insert(0, GrammarWithLexer::from_lark(prelude));
}

fn top_level(grammar: &Grammar) -> Result<TopLevelGrammar, GrammarError> {
    Ok(match grammar {
        Grammar::JsonObject => {
            TopLevelGrammar::from_json_schema(with_bounded_space(json!({"type": "object"})))
        }
        Grammar::JsonSchema(text) => TopLevelGrammar::from_json_schema(with_bounded_space(schema(text)?)),
        Grammar::Regex(text) => TopLevelGrammar::from_regex(text),
        Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        Grammar::Choice(texts) => {
            let any: Vec<String> = texts.iter().map(|text| literal(text)).collect();
            TopLevelGrammar::from_regex(&format!("(?:{})", any.join("|")))
        }
    })
}

/// A regular expression of a text: whatever could mean something is written as its code point.
fn literal(text: &str) -> String {
    let escape = |c: char| match c.is_ascii_alphanumeric() {
        true => c.to_string(),
        false => format!(r"\x{{{:X}}}", u32::from(c)),
    };
    text.chars().map(escape).collect()
}

/// The compiler's words without its dumps, which begin on a line of their own in angle brackets.
pub(super) fn brief(why: &str) -> String {
    let why = why.split("\n<").next().unwrap_or_default();
    why.chars().take(MAX_WHY).collect()
}

/// What the compiler needs to know of a model.
pub(super) fn factory(trie: TokTrie) -> Result<ParserFactory, String> {
    // Not canonical: the model tokenises as it likes, as it does without a grammar.
    let environment: TokEnv = std::sync::Arc::new(llguidance::toktrie::ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&environment).map_err(|e| brief(&e.to_string()))?;
    *factory.limits_mut() = limits();
    factory.quiet();
    Ok(factory)
}
