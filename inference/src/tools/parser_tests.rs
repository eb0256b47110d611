use proptest::prelude::*;

use super::*;

/// An answer, put together: text and calls.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    text: String,
    /// Name, arguments, whether whole.
    calls: Vec<(String, String, Option<bool>)>,
}

impl Answer {
    fn add(&mut self, events: Vec<ToolEvent>) {
        for event in events {
            match event {
                ToolEvent::Text(text) => self.text += &text,
                ToolEvent::CallStarted { index, name } => {
                    assert_eq!(index as usize, self.calls.len());
                    self.calls.push((name, String::new(), None));
                }
                ToolEvent::ArgumentsDelta { index, text } => {
                    assert!(!text.is_empty());
                    self.calls[index as usize].1 += &text;
                }
                ToolEvent::CallEnded { index, whole } => {
                    assert_eq!(self.calls[index as usize].2.replace(whole), None);
                }
            }
        }
    }
}

fn parser(format: ToolFormat) -> ToolParser {
    ToolParser::new(format, ["f", "get_weather"])
}

fn parse(format: ToolFormat, pieces: &[&str]) -> Answer {
    let (mut parser, mut answer) = (parser(format), Answer::default());
    pieces.iter().for_each(|piece| answer.add(parser.push(piece)));
    answer.add(parser.finish());
    let whole = answer.calls.iter().any(|call| call.2 == Some(true));
    assert_eq!(parser.has_calls(), whole);
    answer
}

fn hermes(text: &str) -> (String, Vec<(String, String, Option<bool>)>) {
    let answer = parse(ToolFormat::Hermes, &[text]);
    (answer.text, answer.calls)
}

fn llama(text: &str) -> (String, Vec<(String, String, Option<bool>)>) {
    let answer = parse(ToolFormat::Llama3, &[text]);
    (answer.text, answer.calls)
}

fn call(name: &str, arguments: &str) -> (String, String, Option<bool>) {
    (name.into(), arguments.into(), Some(true))
}

#[test]
fn calls_follow_text_and_each_other() {
    let text = "Let me see.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\"}}\n\
                </tool_call>\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n";
    let calls = vec![call("get_weather", "{\"city\": \"Zürich\"}"), call("f", "{}")];
    assert_eq!(hermes(text), ("Let me see.\n".into(), calls));
}

#[test]
fn space_before_a_call_is_no_text() {
    assert_eq!(hermes("\n\n<tool_call>{\"name\":\"f\"}</tool_call>").0, "");
    assert_eq!(hermes("\n\nx").0, "\n\nx");
    assert_eq!(hermes("\n\n").0, "\n\n");
}

#[test]
fn keys_may_come_in_any_order_and_with_others() {
    let text = r#"<tool_call>{"id": 7, "arguments": {"a": [1, "}"]}, "name": "f", "type": null}</tool_call>"#;
    assert_eq!(hermes(text), (String::new(), vec![call("f", r#"{"a": [1, "}"]}"#)]));
}

#[test]
fn marks_may_be_left_out_where_the_call_is_clear() {
    let one = r#"<tool_call>{"name": "f", "arguments": {"a": 1}}"#;
    assert_eq!(hermes(one).1, vec![call("f", r#"{"a": 1}"#)]);
    let two = format!("{one}\n{one}</tool_c");
    assert_eq!(hermes(&two), (String::new(), vec![call("f", r#"{"a": 1}"#); 2]));
}

#[test]
fn what_is_no_call_is_text() {
    for text in [
        "a < b <tool_cal> <<tool_call",
        "<tool_call>not json</tool_call>",
        "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": 1, \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": []}</tool_call>",
        "<tool_call>{\"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"name\": \"f\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"f\"",
        "</tool_call>",
        "<tool_call>{\"name\": é",
    ] {
        assert_eq!(hermes(text), (text.into(), Vec::new()));
    }
}

#[test]
fn a_call_that_breaks_off_is_ended_and_the_rest_is_text() {
    let (text, calls) =
        hermes(r#"<tool_call>{"name": "f", "arguments": {"a": oops}} <tool_call>{"name": "f"}"#);
    assert_eq!(calls, vec![("f".into(), r#"{"a": "#.into(), Some(false)), call("f", "{}")]);
    assert_eq!(text, "oops}} ");
    let (text, calls) = hermes(r#"<tool_call>{"name": "f", "arguments": {"a": "unfini"#);
    assert_eq!((text.as_str(), calls), ("", vec![("f".into(), r#"{"a": "unfini"#.into(), Some(false))]));
}

#[test]
fn a_missing_brace_costs_no_call() {
    let one = r#"<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>"#;
    assert_eq!(hermes(&one.repeat(2)), (String::new(), vec![call("f", r#"{"a": 1}"#); 2]));
}

#[test]
fn text_after_a_call_is_kept() {
    let (text, calls) = hermes(r#"<tool_call>{"name": "f"}</tool_call>  Done."#);
    assert_eq!((text.as_str(), calls.len()), ("  Done.", 1));
}

#[test]
fn llama_writes_calls_alone() {
    let one = r#"{"name": "f", "parameters": {"q": "a;b"}}"#;
    assert_eq!(llama(one), (String::new(), vec![call("f", r#"{"q": "a;b"}"#)]));
    assert_eq!(llama(&format!("\n<|python_tag|>{one}")).1.len(), 1);
    assert_eq!(
        llama(&format!("{one}; {one} ;\n{one}\n")),
        (String::new(), vec![call("f", r#"{"q": "a;b"}"#); 3])
    );
    for text in [
        format!("Sure: {one}"),
        "{\"a\": 1}".into(),
        "{\"name\": \"x\", \"parameters\": {}}".into(),
        "<|python_tag|>print(1)".into(),
    ] {
        assert_eq!(llama(&text), (text.clone(), Vec::new()));
    }
    let (text, calls) = llama(&format!("{one}; and more"));
    assert_eq!((text.as_str(), calls.len()), ("; and more", 1));
}

#[test]
fn arguments_go_on_as_they_come() {
    let mut parser = parser(ToolFormat::Hermes);
    assert_eq!(parser.push("<tool_call>{\"name\": \"f\""), []);
    assert_eq!(
        parser.push(", \"arguments\": {\"a"),
        [
            ToolEvent::CallStarted { index: 0, name: "f".into() },
            ToolEvent::ArgumentsDelta { index: 0, text: "{\"a".into() }
        ]
    );
    assert_eq!(parser.push("\": 1"), [ToolEvent::ArgumentsDelta { index: 0, text: "\": 1".into() }]);
    assert_eq!(
        parser.push("}}</tool"),
        [
            ToolEvent::ArgumentsDelta { index: 0, text: "}".into() },
            ToolEvent::CallEnded { index: 0, whole: true }
        ]
    );
}

#[test]
fn what_is_held_back_and_how_many_calls_are_read_is_bounded() {
    let long = format!("<tool_call>{{\"x\": \"{}\"", "y".repeat(2 * MAX_HELD_BYTES));
    let mut parser = parser(ToolFormat::Hermes);
    let mut text = 0;
    for piece in long.as_bytes().chunks(1000) {
        for event in parser.push(std::str::from_utf8(piece).unwrap()) {
            let ToolEvent::Text(piece) = event else { panic!("{event:?}") };
            text += piece.len();
        }
        assert!(parser.held.len() <= MAX_HELD_BYTES);
    }
    assert_eq!(text, long.len());
    let many = "<tool_call>{\"name\": \"f\"}</tool_call>".repeat(MAX_CALLS as usize + 2);
    let (text, calls) = hermes(&many);
    assert_eq!(calls.len(), MAX_CALLS as usize);
    assert_eq!(text, "<tool_call>{\"name\": \"f\"}</tool_call>".repeat(2));
}

/// Pieces of which answers and near misses are made.
const PARTS: [&str; 18] = [
    "<tool_call>",
    "</tool_call>",
    "<tool_",
    "{\"name\": \"f\"",
    "{\"name\": \"g\"",
    ", \"arguments\": {",
    ", \"parameters\": {",
    "\"a\": 1",
    "\"é\\u00e9\": [true, -1.5e3]",
    "}",
    "}}",
    "; ",
    "\n",
    " ",
    "text",
    "<|python_tag|>",
    "\"",
    "{\"name\": \"f\", \"arguments\": {}}",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_result_does_not_depend_on_the_pieces(
        parts in prop::collection::vec(prop::sample::select(&PARTS[..]), 0..14),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        is_hermes: bool,
    ) {
        let format = if is_hermes { ToolFormat::Hermes } else { ToolFormat::Llama3 };
        let text = parts.concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        cuts.retain(|cut| text.is_char_boundary(*cut));
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
        let whole = parse(format, &[&text]);
        prop_assert_eq!(&whole, &parse(format, &pieces));
        let bytes = whole.text.len() + whole.calls.iter().map(|call| call.1.len()).sum::<usize>();
        if whole.calls.is_empty() {
            prop_assert_eq!(&whole.text, &text);
        } else {
            // `{}` stands for arguments that were left out.
            prop_assert!(bytes <= text.len() + 2 * whole.calls.len());
        }
        for (name, arguments, ended) in &whole.calls {
            prop_assert_eq!(name, "f");
            let valid = serde_json::from_str::<serde_json::Map<_, _>>(arguments).is_ok();
            prop_assert_eq!(*ended, Some(valid));
        }
    }
}
