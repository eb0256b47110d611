use super::*;
use crate::{ChatRole, Message};

fn render(source: &str) -> Result<String, TemplateError> {
    let messages = [Message::new(ChatRole::User, " Hi ")];
    ChatTemplate::parse(None, Some(source.as_bytes()))?.render(&Prompt::new(&messages))
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
fn a_template_cannot_run_write_or_grow_without_end() {
    let twice = |step: &str| {
        format!(
            "{{% set ns = namespace(x='ab') %}}{{% for i in range(60) %}}{{% set ns.x = {step} %}}{{% endfor %}}"
        )
    };
    let deep = "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}";
    for hostile in [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}".to_owned(),
        "{% for a in range(9999) %}{{ 'x' * 99 }}{% endfor %}".into(),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into(),
        "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}".into(),
        twice("ns.x + ns.x"),
        twice("ns.x ~ ns.x"),
        twice("ns.x * 1000"),
        twice("ns.x.replace('a', 'aaaaaaaaaaaaaaaa')"),
        twice("ns.x.replace('', ns.x)"),
        twice("ns.x.join([ns.x, ns.x, ns.x])"),
        twice("'{0}{0}{0}'.format(ns.x)"),
        twice("[ns.x, ns.x]|tojson"),
        twice("ns.x|replace('a', 'aaaaaaaaaaaaaaaa')"),
        twice("[ns.x, ns.x]|join(ns.x)"),
        twice("ns.x|indent(99999)|indent(99999, true)|indent(99999)"),
        "{{ '{:999999999}'.format(1) }}{{ '%999999999d'|format(1) }}".into(),
        "{{ 'x' * 999999999999 }}".into(),
        "{{ range(99999999999) | list }}".into(),
        "{{ messages|tojson(indent=999999999) }}".into(),
        format!("{deep}{{{{ ns.x }}}}"),
        format!("{deep}{{{{ ns.x|tojson }}}}"),
        "{".repeat(300) + &"(".repeat(20_000),
        "{{ ".to_owned() + &"[".repeat(20_000) + &"]".repeat(20_000) + " }}",
        "{% if true %}".repeat(5000),
        "{% if true %}".repeat(5000) + &"{% endif %}".repeat(5000),
    ] {
        let shown: String = hostile.chars().take(150).collect();
        let error = render(&hostile).expect_err(&shown).to_string();
        assert!(!error.is_empty() && error.len() < 1000, "{shown}: {error}");
    }
}

#[test]
fn long_texts_cost_fuel_by_their_length() {
    let messages = [Message::new(ChatRole::User, "a".repeat(190 * 1024))];
    let spin = "{% for i in range(9000) %}{% set x = messages[0].content.find('b') %}{% endfor %}";
    let template = ChatTemplate::parse(None, Some(spin.as_bytes())).unwrap();
    assert!(template.render(&Prompt::new(&messages)).unwrap_err().to_string().contains("fuel"));
}

#[test]
fn a_missing_template_and_a_broken_one_are_told_apart() {
    assert!(matches!(ChatTemplate::parse(Some(b"{}"), None), Err(TemplateError::Missing)));
    assert!(matches!(render("{% for"), Err(TemplateError::Syntax(_))));
    let list = br#"{"chat_template": [{"name": "default", "template": "ok"}]}"#;
    assert_eq!(ChatTemplate::parse(Some(list), None).unwrap().render(&Prompt::new(&[])).unwrap(), "ok");
}

#[test]
fn marks_for_training_change_nothing() {
    let text = render(
        "{%- for m in messages %}\n[{% generation %}{{ m.content }}{%- endgeneration -%} ]{% endfor %}",
    );
    assert_eq!(text.unwrap(), "[ Hi ]");
}

#[test]
fn the_time_is_the_caller_s_and_undefined_without() {
    let source = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}never{% endif %}";
    let template = ChatTemplate::parse(None, Some(source.as_bytes())).unwrap();
    let prompt = Prompt::new(&[]);
    assert_eq!(template.render(&prompt).unwrap(), "never");
    let dated = Prompt { now: Some(1_721_952_000), ..prompt };
    assert_eq!(template.render(&dated).unwrap(), "26 Jul 2024");
}

#[test]
fn variables_are_passed_and_cannot_replace_the_conversation() {
    let template = ChatTemplate::parse(None, Some(b"{{ enable_thinking }}")).unwrap();
    let render = |variables: Json| {
        let prompt = Prompt { variables: variables.as_object(), ..Prompt::new(&[]) };
        template.render(&prompt)
    };
    assert_eq!(render(serde_json::json!({"enable_thinking": false})).unwrap(), "False");
    assert!(matches!(render(serde_json::json!({"messages": []})), Err(TemplateError::Reserved { .. })));
}

/// What `transformers` renders, of which tests/templates/make_expected.py tells.
#[test]
fn templates_render_as_in_python() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates");
    let expected: Json =
        serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let text = |value: &Json| value.as_str().map(str::to_owned);
    let role = |message: &Json| serde_json::from_value(message["role"].clone()).unwrap();
    let turn = |message: &Json| Message {
        role: role(message),
        content: text(&message["content"]).unwrap(),
        reasoning: text(&message["reasoning_content"]),
        tool_calls: serde_json::from_value(message["tool_calls"].clone()).unwrap_or_default(),
        tool_call_id: text(&message["tool_call_id"]),
        name: text(&message["name"]),
    };
    let tool = |tool: &Json| crate::tools::ToolDefinition {
        name: text(&tool["name"]).unwrap(),
        description: text(&tool["description"]),
        parameters: Some(tool["parameters"].to_string()),
    };
    let list = |value: &Json| value.as_array().cloned().unwrap_or_default();
    let mut differing = Vec::new();
    for (name, cases) in expected["expected"].as_object().unwrap() {
        let source = std::fs::read(folder.join(name)).unwrap();
        let config = expected["tokens"].to_string();
        let template = ChatTemplate::parse(Some(config.as_bytes()), Some(&source));
        for (case, expected_text) in cases.as_object().unwrap() {
            let given = &expected["cases"][case];
            let messages: Vec<Message> = list(&given["messages"]).iter().map(turn).collect();
            let tools: Vec<_> = list(&given["tools"]).iter().map(tool).collect();
            let prompt = Prompt {
                messages: &messages,
                tools: &tools,
                variables: given["variables"].as_object(),
                now: expected["now"].as_u64(),
                add_generation_prompt: given["add_generation_prompt"].as_bool().unwrap_or(true),
            };
            let rendered = template.as_ref().map_err(|e| e.to_string());
            let rendered = rendered.and_then(|t| t.render(&prompt).map_err(|e| e.to_string()));
            if rendered.as_ref().ok() != text(expected_text).as_ref() {
                differing.push(format!("{name}, {case}:\n{rendered:?}\n{expected_text}"));
            }
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n\n"));
}
