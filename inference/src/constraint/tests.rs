// A bound on time is what some of these tests are about.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::*;

/// Ids 0 to 255 are bytes; after them come pieces, two control tokens, and two tokens that end an answer.
const PIECES: [&[u8]; 12] = [
    b"{\"",
    b"\":",
    b"\", \"",
    b"true",
    b"null",
    b"  ",
    b"\"name\"",
    b"12",
    "\u{e9}".as_bytes(),
    b"\xE4\xB8",
    b"\x96\xF0\x9F",
    b"\"}",
];
const CONTROL: u32 = 256 + PIECES.len() as u32;
const END: u32 = CONTROL + 2;
const TOKENS: usize = END as usize + 2;

fn bytes(id: u32) -> Vec<u8> {
    match id {
        0..256 => vec![id as u8],
        256..CONTROL => PIECES[id as usize - 256].to_vec(),
        _ => Vec::new(),
    }
}

fn vocabulary() -> Vocabulary {
    static ONCE: std::sync::OnceLock<Vocabulary> = std::sync::OnceLock::new();
    let make = || {
        let words: Vec<Vec<u8>> = (0..TOKENS as u32).map(bytes).collect();
        Vocabulary::new(words.iter().map(Vec::as_slice), [END, END + 1]).unwrap()
    };
    ONCE.get_or_init(make).clone()
}

fn constraint(grammar: &Grammar) -> Constraint {
    Constraint::new(&vocabulary(), grammar).unwrap()
}

/// A model without any idea, but with a liking for what ends texts.
struct Model(u64);

impl Model {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn logits(&mut self) -> Vec<f32> {
        let mut logits: Vec<f32> = (0..TOKENS).map(|_| (self.next() % 1000) as f32 / 100.0).collect();
        for liked in *b"\"}],:" {
            logits[usize::from(liked)] += (self.next() % 10) as f32;
        }
        logits[END as usize] += (self.next() % 10) as f32;
        logits
    }
}

/// What a model says under a grammar, and whether it came to an end.
fn sample(grammar: &Grammar, seed: u64) -> (Vec<u32>, Vec<u8>, bool) {
    let (mut constraint, mut model) = (constraint(grammar), Model(seed));
    let (mut ids, mut text) = (Vec::new(), Vec::new());
    for _ in 0..400 {
        if constraint.must_stop() {
            return (ids, text, true);
        }
        let mut logits = model.logits();
        constraint.mask(&mut logits).unwrap();
        let (id, best) = (0u32..).zip(&logits).reduce(|a, b| if b.1 > a.1 { b } else { a }).expect("a token");
        assert!(best.is_finite(), "a mask must leave a token");
        constraint.accept(id).unwrap();
        if id >= END {
            assert!(constraint.is_complete().unwrap());
            return (ids, text, true);
        }
        assert!(id < CONTROL, "control tokens are never allowed");
        ids.push(id);
        text.extend(bytes(id));
    }
    (ids, text, false)
}

const PERSON: &str = r##"{
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "\u00e9\"", 7]}, "maxItems": 3},
        "friend": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}
    },
    "required": ["name", "age"],
    "additionalProperties": false
}"##;

fn is_person(value: &Value) -> bool {
    let Some(fields) = value.as_object() else { return false };
    let tag = |tag: &Value| tag == "a" || tag == "\u{e9}\"" || tag == 7;
    let field = |(name, value): (&String, &Value)| match name.as_str() {
        "name" => value.as_str().is_some_and(|name| name.chars().count() <= 8),
        "age" => value.as_i64().is_some_and(|age| (0..=150).contains(&age)),
        "tags" => value.as_array().is_some_and(|tags| tags.len() <= 3 && tags.iter().all(tag)),
        "friend" => value.is_null() || is_person(value),
        _ => false,
    };
    fields.contains_key("name") && fields.contains_key("age") && fields.iter().all(field)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_finished_answer_is_a_json_object(seed: u64) {
        let (_, text, finished) = sample(&Grammar::JsonObject, seed);
        if finished {
            let text = String::from_utf8(text).expect("UTF-8");
            // Of JSON's numbers only the form is asked: most of them fit no type.
            let value: Result<BTreeMap<String, IgnoredAny>, _> = serde_json::from_str(&text);
            prop_assert!(value.is_ok(), "{text}");
        }
    }

    #[test]
    fn every_finished_answer_fits_the_schema(seed: u64) {
        let (_, text, finished) = sample(&Grammar::JsonSchema(PERSON.into()), seed);
        if finished {
            let text = String::from_utf8(text).expect("UTF-8");
            let value: Value = serde_json::from_str(&text).expect("JSON");
            prop_assert!(is_person(&value), "{text}");
        }
    }

    #[test]
    fn every_finished_answer_matches_the_expression(seed: u64) {
        for pattern in [r"[a-f]{2,5}(-[0-9]+)?", r"^(\d{1,3}|\p{Greek}+|/x\n)$", "世?é{1,4}"] {
            let (_, text, finished) = sample(&Grammar::Regex(pattern.into()), seed);
            if finished {
                let text = String::from_utf8(text).expect("UTF-8");
                let whole = regex::Regex::new(&format!("^(?:{pattern})$")).unwrap();
                prop_assert!(whole.is_match(&text), "{pattern}: {text:?}");
            }
        }
    }

    #[test]
    fn every_answer_is_one_of_the_choices(seed: u64) {
        let choices = ["yes", "no", "no way", "\u{e9}.*\n\u{7f}/\\", "<[258]>"].map(str::to_owned);
        let (_, text, finished) = sample(&Grammar::Choice(choices.to_vec()), seed);
        prop_assert!(finished);
        prop_assert!(choices.contains(&String::from_utf8(text).unwrap()));
    }

    #[test]
    fn a_resumed_answer_is_in_the_same_state(seed: u64, cut in 0usize..400) {
        let grammar = Grammar::JsonSchema(PERSON.into());
        let (ids, ..) = sample(&grammar, seed);
        let cut = cut.min(ids.len());
        let (mut first, mut second) = (constraint(&grammar), constraint(&grammar));
        for &id in &ids[..cut] {
            // The first worker asks for every mask, the second replays.
            let _mask = first.allowed().unwrap();
            first.accept(id).unwrap();
            second.accept(id).unwrap();
        }
        prop_assert_eq!(first.must_stop(), second.must_stop());
        prop_assert_eq!(first.is_complete().unwrap(), second.is_complete().unwrap());
        prop_assert_eq!(first.allowed().unwrap(), second.allowed().unwrap());
    }
}

#[test]
fn most_random_answers_finish() {
    let finished = |grammar: &Grammar| (0..40).filter(|&seed| sample(grammar, seed).2).count();
    assert!(finished(&Grammar::JsonObject) >= 20);
    assert!(finished(&Grammar::JsonSchema(PERSON.into())) >= 20);
}

#[test]
fn characters_may_be_split_over_tokens_and_stay_whole() {
    let mut constraint = constraint(&Grammar::Choice(vec!["世😀".into()]));
    let allowed = |constraint: &mut Constraint| -> Vec<u32> {
        (0u32..).zip(constraint.allowed().unwrap()).filter(|(_, a)| *a).map(|(id, _)| id).collect()
    };
    assert_eq!(allowed(&mut constraint), [0xE4, 256 + 9]);
    constraint.accept(256 + 9).unwrap();
    assert_eq!(allowed(&mut constraint), [0x96, 256 + 10]);
    constraint.accept(256 + 10).unwrap();
    assert_eq!(allowed(&mut constraint), [0x98]);
    constraint.accept(0x98).unwrap();
    assert!(!constraint.is_complete().unwrap());
    constraint.accept(0x80).unwrap();
    assert!(constraint.must_stop());
    assert_eq!(allowed(&mut constraint), [END, END + 1]);
}

/// How far a text goes under a grammar, and whether it may end there.
fn follow(constraint: &mut Constraint, text: &str) -> (usize, bool) {
    let taken = text.bytes().take_while(|byte| constraint.accept(u32::from(*byte)).is_ok()).count();
    (taken, constraint.is_complete().unwrap())
}

#[test]
fn thoughts_may_come_before_the_answer() {
    let marks = crate::reasoning::ReasoningMarks::THINK;
    let lark = "start: \"{\" B \"}\"\nB: /b+/".to_owned();
    for grammar in [Grammar::JsonObject, Grammar::Regex(r"\{\}|\{b\}".into()), Grammar::Lark(lark)] {
        let make = |opened| Constraint::after_reasoning(&vocabulary(), &grammar, marks, opened).unwrap();
        let answer = if grammar == Grammar::JsonObject { "{\"a\": 1}" } else { "{b}" };
        for (opened, thoughts) in [
            (true, "Hm < {x}\n</think>\n\n"),
            (false, "<think>é</th </think>"),
            (false, ""),
            (true, "</think>"),
        ] {
            let text = format!("{thoughts}{answer}");
            assert_eq!(follow(&mut make(opened), &text), (text.len(), true), "{grammar:?}: {text:?}");
            let cut = text.len() - 1;
            assert_eq!(follow(&mut make(opened), &text[..cut]), (cut, false));
        }
        assert_eq!(follow(&mut make(false), "Yes").0, 0);
        assert_eq!(follow(&mut make(true), "ok</think>Yes").0, 10);
    }
}

#[test]
fn an_answer_ends_only_where_the_grammar_may() {
    let mut constraint = constraint(&Grammar::Regex("a+b?".into()));
    assert_eq!(constraint.accept(END), Err(ConstraintError::Disallowed(END)));
    assert!(!constraint.allowed().unwrap()[END as usize]);
    constraint.accept(u32::from(b'a')).unwrap();
    assert!(constraint.is_complete().unwrap() && !constraint.must_stop());
    assert!(constraint.allowed().unwrap()[END as usize + 1]);
    assert_eq!(constraint.accept(u32::from(b'c')), Err(ConstraintError::Disallowed(u32::from(b'c'))));
    constraint.accept(u32::from(b'a')).unwrap();
    constraint.accept(END).unwrap();
    assert!(constraint.must_stop());
    assert!(constraint.accept(u32::from(b'a')).is_err());
}

#[test]
fn control_tokens_are_out_of_reach() {
    for source in [format!("start: <[{CONTROL}]>"), "start: <[0-255]>* <[0-300]>".into()] {
        match Constraint::new(&vocabulary(), &Grammar::Lark(source)) {
            Err(GrammarError::Refused(_)) => {}
            Err(other) => panic!("{other}"),
            Ok(mut constraint) => {
                assert!(!constraint.allowed().unwrap()[CONTROL as usize]);
                assert!(constraint.accept(CONTROL).is_err());
            }
        }
    }
}

#[test]
fn a_mask_wants_one_logit_per_token() {
    let error = constraint(&Grammar::JsonObject).mask(&mut [0.0; 3]);
    assert_eq!(error, Err(ConstraintError::Size { logits: 3, tokens: TOKENS }));
}

#[test]
fn vocabularies_that_cannot_end_are_refused() {
    let words = [b"a".as_slice(), b"b"];
    assert_eq!(Vocabulary::new(words, []).unwrap_err(), VocabularyError::NoEnd);
    assert_eq!(Vocabulary::new(words, [2]).unwrap_err(), VocabularyError::UnknownEnd { id: 2, tokens: 2 });
    let poor = Vocabulary::new(words, [1]).unwrap();
    let error = Constraint::new(&poor, &Grammar::JsonObject).unwrap_err();
    assert!(error.to_string().contains("no answer of this model"), "{error}");
}

/// Compiles and, where that works, follows the grammar for a while. Whatever a stranger sends, both must
/// come back soon, with an answer or with an error that has no dump of the parser in it.
fn survives(grammar: Grammar) -> Duration {
    let begin = Instant::now();
    match Constraint::new(&vocabulary(), &grammar) {
        Err(error) => {
            let error = error.to_string();
            assert!(
                error.len() < 1000 && !error.contains("<state>") && !error.contains("backtrace"),
                "{error}"
            );
        }
        Ok(mut constraint) => {
            let mut model = Model(1);
            for _ in 0..20 {
                let mut logits = model.logits();
                if constraint.must_stop() || constraint.mask(&mut logits).is_err() {
                    break;
                }
                let best = (0u32..).zip(&logits).reduce(|a, b| if b.1 > a.1 { b } else { a }).unwrap();
                if constraint.accept(best.0).is_err() {
                    break;
                }
            }
        }
    }
    begin.elapsed()
}

#[test]
fn hostile_grammars_are_refused_or_followed_in_bounded_time() {
    let chain = |n: usize| {
        let all: Vec<String> = (0..n)
            .map(|i| {
                format!(r##""d{i}": {{"allOf": [{{"$ref": "#/$defs/d{}"}}, {{"minLength": {i}}}]}}"##, i + 1)
            })
            .collect();
        format!(r##"{{"$defs": {{{}, "d{n}": {{"type": "string"}}}}, "$ref": "#/$defs/d0"}}"##, all.join(","))
    };
    let doubling: Vec<String> = (0..40)
        .map(|i| format!(r##""d{i}": {{"type": "array", "prefixItems": [{{"$ref": "#/$defs/d{0}"}}, {{"$ref": "#/$defs/d{0}"}}], "minItems": 2}}"##, i + 1))
        .collect();
    let alternatives: Vec<String> = (0..200)
        .map(|i| format!(r#"{{"type": "object", "properties": {{"k{i}": {{"type": "string"}}, "x": {{"minLength": {i}}}}}}}"#))
        .collect();
    let crossed = |word: &str| {
        let part = format!(r#"{{"{word}": [{}]}}"#, alternatives[..40].join(","));
        format!(r#"{{"allOf": [{part}, {part}, {part}]}}"#)
    };
    let nested = format!(r#"{{"type":"array","items":{}{{}}{}}}"#, r#"{"items":"#.repeat(60), "}".repeat(60));
    let schemas = [
        ("long chain", chain(400)),
        ("doubling", format!(r##"{{"$defs": {{{}, "d40": {{"type": "null"}}}}, "$ref": "#/$defs/d0"}}"##, doubling.join(","))),
        ("self", r##"{"$ref": "#"}"##.into()),
        ("loop", r##"{"allOf": [{"$ref": "#"}, {"type": "object"}]}"##.into()),
        ("no end", r##"{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}"##.into()),
        ("elsewhere", r#"{"$ref": "https://example.com/schema.json"}"#.into()),
        ("alternatives", format!(r#"{{"anyOf": [{}]}}"#, alternatives.join(","))),
        ("crossed anyOf", crossed("anyOf")),
        ("crossed oneOf", crossed("oneOf")),
        ("long string", r#"{"type": "string", "minLength": 1000000, "maxLength": 1000000}"#.into()),
        ("long array", r#"{"type": "array", "minItems": 1000000, "maxItems": 1000000}"#.into()),
        ("long range", r#"{"type": "array", "minItems": 7, "maxItems": 999999, "items": {"type": "array", "minItems": 77777, "maxItems": 777777}}"#.into()),
        ("many properties", r#"{"type": "object", "minProperties": 1000, "maxProperties": 1000000}"#.into()),
        ("nested", nested),
        ("patterns", r#"{"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$", "minLength": 500}"#.into()),
        ("pattern properties", r#"{"patternProperties": {"(a|b)*a(a|b){40}": {}, "(a|b)*b(a|b){41}": {}}}"#.into()),
        ("numbers", r#"{"type": "number", "minimum": -1e308, "maximum": 1e308, "multipleOf": 1e-9}"#.into()),
        ("multiples", r#"{"type": "integer", "multipleOf": 4294967291}"#.into()),
        ("own options", r#"{"type": "object", "x-guidance": {"whitespace_pattern": "((a*)*)*", "lenient": true}}"#.into()),
        ("wrong types", r#"{"type": 7, "properties": [], "required": {}}"#.into()),
    ];
    let expressions = [
        ("powers", "((((x{100}){100}){100}){100}){100}".to_owned()),
        ("repeat", "x{1000000}".into()),
        ("ambiguous", "(a|a)*(a|a)*(a|a)*b".into()),
        ("catastrophe", "(a*)*(a*)*(a+)+$".into()),
        ("subsets", "(a|b)*a(a|b){60}".into()),
        ("classes", r"(\w{1,200}\W{1,200}){1,200}".into()),
        ("deep", "(".repeat(2000) + "a" + &")".repeat(2000)),
        ("unbalanced", "(((".into()),
        ("look around", "(?=a)b".into()),
        ("back reference", r"(a)\1".into()),
        ("nothing", "[^\\s\\S]".into()),
        ("slash", "\\".into()),
        ("anchors", "a^b$c".into()),
    ];
    let larks = [
        ("left recursion", "start: start \"a\" | \"a\"".to_owned()),
        ("no base", "start: start".into()),
        ("ambiguous", "start: s\ns: s s | s s s | \"a\" | ".into()),
        ("repeat", "start: (((\"a\"~1000)~1000)~1000)~1000".into()),
        ("deep", format!("start: {}\"a\"{}", "(".repeat(5000), ")".repeat(5000))),
        (
            "many rules",
            (0..3000).map(|i| format!("r{i}: r{} | \"a\"\n", i + 1)).collect::<String>()
                + "start: r0\nr3000: \"b\"",
        ),
        ("embedded", "start: %json {\"type\": \"array\", \"minItems\": 1000000}".into()),
        ("embedded chain", format!("start: %json {}", chain(700))),
        ("embedded deep", format!("start: %json {}1{}", "[".repeat(5000), "]".repeat(5000))),
        ("intersections", "start: /(a|b)*a(a|b){20}/ & /(a|b)*b(a|b){21}/".into()),
        ("syntax", "start: ???".into()),
        ("import", "%import common.INT\nstart: INT".into()),
    ];
    let all = schemas
        .into_iter()
        .map(|(name, text)| (format!("schema {name}"), Grammar::JsonSchema(text)))
        .chain(expressions.into_iter().map(|(name, text)| (format!("regex {name}"), Grammar::Regex(text))))
        .chain(larks.into_iter().map(|(name, text)| (format!("lark {name}"), Grammar::Lark(text))));
    for (name, grammar) in all {
        let took = survives(grammar);
        assert!(took < Duration::from_secs(20), "{name} took {took:?}");
    }
}

#[test]
fn workers_may_share_vocabularies_and_move_constraints() {
    fn share<T: Send + Sync>() {}
    fn send<T: Send>() {}
    share::<Vocabulary>();
    send::<Constraint>();
}
