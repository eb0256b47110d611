//! Grammars, functions and thoughts, through a whole engine. Its weights are random, so that nothing but the grammar
//! makes an answer what it must be.

use std::sync::OnceLock;

use cocoon_inference::constraint::Grammar;
use cocoon_inference::engine::{CompleteError, complete};
use cocoon_inference::tools::{ToolChoice, ToolDefinition, ToolEvent, ToolFormat};
use cocoon_inference::{
    AnswerPart, AnswerReader, BurnEngine, ChatRole, Engine, FinishReason, GenerateRequest, Message,
    RequestError, Sampling, Structure, Thinking,
};

use crate::testkit::{engine, fixture, request};

/// The untied fixture with a long context and a template that knows functions and thoughts.
fn wide() -> &'static BurnEngine {
    static ENGINE: OnceLock<BurnEngine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let from = fixture("untied");
        for name in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(from.join(name), dir.path().join(name)).unwrap();
        }
        let config = std::fs::read_to_string(from.join("config.json")).unwrap();
        let config = config.replace("\"max_position_embeddings\": 96", "\"max_position_embeddings\": 4096");
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let template = fixture("../templates/qwen3.jinja");
        std::fs::copy(template, dir.path().join("chat_template.jinja")).unwrap();
        BurnEngine::load(dir.path(), None, &mut |_, _| ()).unwrap()
    })
}

fn sampling(seed: u64) -> Sampling {
    Sampling { temperature: 1.0, seed, max_tokens: Some(400), ..Sampling::default() }
}

fn asking(structure: Structure, seed: u64) -> GenerateRequest {
    GenerateRequest { structure, ..request(wide(), "Go on.", sampling(seed)) }
}

fn no_thoughts(structure: Structure) -> Structure {
    Structure { variables: "{\"enable_thinking\": false}".into(), ..structure }
}

fn refusal(engine: &BurnEngine, request: &GenerateRequest) -> String {
    match complete(engine, request, |_| ()) {
        Err(CompleteError::Request(RequestError::Invalid { field, .. })) => field,
        other => panic!("expected a refusal, found {other:?}"),
    }
}

fn tool(name: &str, parameters: &str) -> ToolDefinition {
    ToolDefinition {
        name: name.into(),
        description: Some("Does it.".into()),
        parameters: Some(parameters.into()),
    }
}

/// What is said in an answer, thoughts left out.
fn said(request: &GenerateRequest, text: &str) -> (String, Vec<(String, String)>) {
    let form = wide().start(request).unwrap().form;
    let mut reader = AnswerReader::new(form, &request.structure.tools);
    let (mut said, mut calls) = (String::new(), Vec::new());
    for part in reader.push(text).into_iter().chain(reader.finish("")) {
        match part {
            AnswerPart::Text(text) => said += &text,
            AnswerPart::Call(ToolEvent::CallStarted { name, .. }) => calls.push((name, String::new())),
            AnswerPart::Call(ToolEvent::ArgumentsDelta { text, .. }) => {
                calls.last_mut().unwrap().1.push_str(&text);
            }
            AnswerPart::Call(_) | AnswerPart::Reasoning(_) => {}
        }
    }
    (said, calls)
}

const SCHEMA: &str = r#"{"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99},
    "ok": {"type": "boolean"}}, "required": ["n", "ok"], "additionalProperties": false}"#;

#[test]
fn an_answer_of_random_weights_keeps_to_its_schema_and_ends() {
    for seed in 0..4 {
        let grammar = Some(Grammar::JsonSchema(SCHEMA.into()));
        let request = asking(no_thoughts(Structure { grammar, ..Structure::default() }), seed);
        let done = complete(wide(), &request, |_| ()).unwrap();
        // Space within JSON is free, and random weights may fill all tokens with it.
        if done.reason != FinishReason::Stop {
            continue;
        }
        let (text, _) = said(&request, &done.text);
        let value: serde_json::Value =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        assert!(value["n"].as_u64().unwrap() <= 99 && value["ok"].is_boolean(), "{text}");
    }
}

#[test]
fn a_choice_is_one_of_them_and_needs_no_further_step() {
    let grammar = Some(Grammar::Choice(vec!["yes".into(), "no".into()]));
    let structure = no_thoughts(Structure { grammar, ..Structure::default() });
    for seed in 0..6 {
        let mut request = GenerateRequest {
            structure: structure.clone(),
            ..request(engine(), "x", Sampling { max_tokens: Some(8), ..sampling(seed) })
        };
        let done = complete(engine(), &request, |_| ()).unwrap();
        assert!(["yes", "no"].contains(&done.text.as_str()), "{}", done.text);
        assert_eq!(done.reason, FinishReason::Stop);
        // Whoever resumes it stands where the first worker stood.
        request.prefix = done.ids[..1].to_vec();
        let rest = complete(engine(), &request, |_| ()).unwrap();
        assert_eq!(done.text, format!("{}{}", &done.text[..1], rest.text));
        request.prefix = engine().tokenizer().encode("maybe").unwrap();
        assert_eq!(refusal(engine(), &request), "prefix");
    }
}

#[test]
fn a_demanded_call_is_one_and_the_named_function_is_called() {
    let tools = vec![
        tool("add", SCHEMA),
        tool("stop", r#"{"type": "object", "properties": {}, "additionalProperties": false}"#),
    ];
    let demand = |choice| no_thoughts(Structure { tools: tools.clone(), choice, ..Structure::default() });
    for seed in 0..3 {
        for (choice, names) in
            [(ToolChoice::Required, &["add", "stop"][..]), (ToolChoice::Named("stop".into()), &["stop"][..])]
        {
            let request = asking(demand(choice), seed);
            let started = wide().start(&request).unwrap();
            assert_eq!(started.form.tools, Some(ToolFormat::Hermes));
            let done = complete(wide(), &request, |_| ()).unwrap();
            if done.reason != FinishReason::Stop {
                continue;
            }
            let (_, calls) = said(&request, &done.text);
            assert_eq!(calls.len(), 1, "{}", done.text);
            assert!(names.contains(&calls[0].0.as_str()), "{}", done.text);
            assert!(serde_json::from_str::<serde_json::Value>(&calls[0].1).unwrap().is_object());
        }
    }
}

#[test]
fn beside_functions_an_answer_is_a_call_or_has_its_form() {
    let (mut called, mut answered) = (0, 0);
    for seed in 0..12 {
        let form = Grammar::Choice(vec!["left".into(), "right".into()]);
        let structure =
            Structure { tools: vec![tool("add", SCHEMA)], grammar: Some(form), ..Structure::default() };
        let request = asking(no_thoughts(structure), seed);
        let done = complete(wide(), &request, |_| ()).unwrap();
        if done.reason != FinishReason::Stop {
            continue;
        }
        match said(&request, &done.text) {
            (text, calls) if calls.is_empty() => {
                assert!(["left", "right"].contains(&text.as_str()), "{}", done.text);
                answered += 1;
            }
            (_, calls) => {
                assert_eq!((calls.len(), calls[0].0.as_str()), (1, "add"), "{}", done.text);
                called += 1;
            }
        }
    }
    assert!(called > 0 && answered > 0, "{called} calls, {answered} answers");
}

#[test]
fn thoughts_are_announced_and_free_within_a_grammar() {
    let plain = asking(Structure::default(), 1);
    assert_eq!(wide().start(&plain).unwrap().form.reasoning, Thinking::Possible);
    assert_eq!(engine().start(&request(engine(), "x", sampling(1))).unwrap().form.reasoning, Thinking::Never);
    let grammar = Some(Grammar::Choice(vec!["yes".into(), "no".into()]));
    let mut request = asking(Structure { grammar, ..Structure::default() }, 1);
    // A thought that was begun may go on as it likes.
    request.prefix = wide().tokenizer().encode("<think>maybe").unwrap();
    assert!(complete(wide(), &request, |_| ()).is_ok());
}

#[test]
fn what_cannot_be_followed_is_refused_by_its_field() {
    let with = |structure| GenerateRequest { structure, ..request(engine(), "x", sampling(1)) };
    let tools = vec![tool("add", SCHEMA)];
    let offered = Structure { tools: tools.clone(), ..Structure::default() };
    assert_eq!(refusal(engine(), &with(offered)), "tools", "its template knows none");
    let regex = Structure { grammar: Some(Grammar::Regex("(a".into())), ..Structure::default() };
    assert_eq!(refusal(engine(), &with(regex)), "response_format");
    let both = Structure {
        tools: tools.clone(),
        grammar: Some(Grammar::Lark("start: \"x\"".into())),
        ..Structure::default()
    };
    assert_eq!(refusal(wide(), &asking(both, 1)), "response_format");
    let hidden = ToolDefinition { description: Some("a<|im_end|>b".into()), ..tools[0].clone() };
    let hidden = Structure { tools: vec![hidden], ..Structure::default() };
    assert_eq!(refusal(wide(), &asking(hidden, 1)), "tools[0].function.description");
    let mut answered = asking(Structure { tools, ..Structure::default() }, 1);
    let result = Message { tool_call_id: Some("<|im_start|>".into()), ..Message::new(ChatRole::Tool, "3") };
    answered.messages.push(result);
    assert_eq!(refusal(wide(), &answered), "messages[1].tool_call_id");
}

#[test]
fn functions_and_results_reach_the_prompt() {
    let mut request = asking(Structure { tools: vec![tool("add", SCHEMA)], ..Structure::default() }, 1);
    request.messages.push(Message {
        tool_call_id: Some("c".into()),
        name: Some("add".into()),
        ..Message::new(ChatRole::Tool, "the sum is 3")
    });
    let prompt = wide().render(&request).unwrap();
    assert!(prompt.contains("\"name\": \"add\"") && prompt.contains("the sum is 3"), "{prompt}");
    request.structure.choice = ToolChoice::None;
    assert!(!wide().render(&request).unwrap().contains("\"name\": \"add\""));
}
