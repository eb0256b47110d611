//! Functions on offer: when to call one, with which arguments, and what to say about its result.
//!
//! Names of functions and parameters vary, and many are invented, so that they are copied from the prompt
//! and not remembered. A call fills in every parameter. Results are drawn, not computed, wherever the model
//! could not check them anyway.

use serde_json::{Map, Value, json};

use super::corpus::{Kind, Row, Span};
use super::manners::Spaced;
use super::source::{Source, Wordings, capital, is_held_out};
use super::wordings::{
    CALCULATORS, CITIES, DIFFERENCES, PRODUCTS, QUOTIENTS, SKIES, SUMS, SYSTEM, TIME, WEATHER,
};
use crate::tools::{ToolCall, ToolDefinition};
use crate::{ChatRole, Message};

/// A function and how it is to be called.
#[derive(Debug, Clone)]
struct Function {
    name: String,
    description: Option<String>,
    parameters: Vec<(String, Value)>,
    does: Does,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    /// Works out a formula.
    Formula,
    /// Applies an operator, which is a parameter, to two numbers.
    Operator,
    /// Applies one operation to two numbers.
    Operation(char),
    /// Tells the weather at a place.
    Weather,
    /// Tells the time at a place.
    Time,
}

/// A question that a function answers.
#[derive(Debug, Clone)]
struct Errand {
    user: String,
    name: String,
    arguments: Value,
    result: String,
    said: String,
}

/// A question with functions on offer, and what the model must write.
#[derive(Debug, Clone)]
pub struct Offered {
    /// The row: it ends with the call, or with what is said about the result.
    pub row: Row,
    /// Name and arguments, where the answer is a call.
    pub call: Option<(String, Value)>,
}

/// What a row of functions ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The call.
    Call,
    /// The answer after its result.
    Result,
    /// An answer that needs no call.
    Unneeded,
}

const OPERATIONS: [(char, &[&str], &str); 4] = [
    ('+', &["add", "sum", "plus", "add_numbers", "addition"], "Adds two numbers."),
    ('-', &["subtract", "minus", "difference", "subtract_numbers"], "Subtracts two numbers."),
    ('*', &["multiply", "times", "product", "multiply_numbers"], "Multiplies two numbers."),
    ('/', &["divide", "quotient", "divide_numbers", "division"], "Divides two numbers."),
];

impl Source {
    /// A question with functions on offer.
    pub fn offered(&mut self, ending: Ending) -> Offered {
        let mut functions = self.functions();
        if ending == Ending::Unneeded {
            return self.unneeded(functions);
        }
        let mut messages = self.preface();
        if self.rng.chance(8) {
            let earlier = self.errand(&functions);
            let said = Message::new(ChatRole::Assistant, earlier.said.as_str());
            messages.extend(earlier.called());
            messages.push(said);
        }
        let errand = self.errand(&functions);
        self.rng.shuffle(&mut functions);
        let tools = functions.iter().map(Function::definition).collect();
        if ending == Ending::Call {
            let answer = vec![Span::trained(&errand.call())];
            messages.push(Message::new(ChatRole::User, errand.user));
            let row = Row { kind: Kind::Function, messages, tools, answer };
            return Offered { row, call: Some((errand.name, errand.arguments)) };
        }
        messages.extend(errand.called());
        let row = Row { kind: Kind::Function, messages, tools, answer: vec![Span::trained(&errand.said)] };
        Offered { row, call: None }
    }

    /// A system message now and then.
    fn preface(&mut self) -> Vec<Message> {
        match self.rng.chance(12) {
            true => vec![Message::new(ChatRole::System, self.rng.pick(SYSTEM))],
            false => Vec::new(),
        }
    }

    /// A question that no function on offer answers.
    fn unneeded(&mut self, functions: Vec<Function>) -> Offered {
        let computes = functions.iter().any(|function| !matches!(function.does, Does::Weather | Does::Time));
        let task = match self.rng.below(100) {
            0..45 => self.fact(),
            45..60 => self.word(),
            60..75 => self.talk(),
            _ if computes => self.compare(),
            _ => self.arithmetic(),
        };
        let mut messages = self.preface();
        messages.push(Message::new(ChatRole::User, task.user.as_str()));
        let tools = functions.iter().map(Function::definition).collect();
        let row = Row { kind: Kind::Function, messages, tools, answer: vec![Span::answer_of(&task)] };
        Offered { row, call: None }
    }

    /// One to three functions, of which the first can be asked for.
    fn functions(&mut self) -> Vec<Function> {
        let mut functions = match self.rng.below(100) {
            0..45 => vec![self.calculator(Does::Formula)],
            45..62 => vec![self.calculator(Does::Operator)],
            62..84 => {
                let mut all: Vec<Function> =
                    OPERATIONS.iter().map(|operation| self.operation(*operation)).collect();
                self.rng.shuffle(&mut all);
                all.truncate(1 + self.rng.below(3));
                all
            }
            84..94 => vec![self.place(Does::Weather)],
            _ => vec![self.place(Does::Time)],
        };
        if functions.len() < 3 && self.rng.chance(30) {
            let has_place = matches!(functions[0].does, Does::Weather | Does::Time);
            let other = match (has_place, self.rng.chance(70)) {
                (true, _) => self.calculator(Does::Formula),
                (false, true) => self.place(Does::Weather),
                (false, false) => self.place(Does::Time),
            };
            functions.push(other);
        }
        functions
    }

    fn described(&mut self, wordings: &[&str]) -> Option<String> {
        (!self.rng.chance(15)).then(|| self.rng.pick(wordings).to_owned())
    }

    /// The name of a function: a known one, or an invented one with a hint.
    fn function_name(&mut self, known: &[&str], hints: &[&str]) -> String {
        if !self.is_held_out() && self.rng.chance(50) {
            return self.rng.pick(known).to_owned();
        }
        let (hint, invented) = (self.rng.pick(hints), self.invented());
        match self.rng.below(3) {
            0 => format!("{invented}_{hint}"),
            1 => format!("{hint}_{invented}"),
            _ => format!("{hint}{}", capital(&invented)),
        }
    }

    fn parameter(&mut self, known: &[&str]) -> String {
        match self.rng.chance(if self.is_held_out() { 50 } else { 80 }) {
            true => self.rng.pick(known).to_owned(),
            false => self.invented(),
        }
    }

    fn two_numbers(&mut self) -> Vec<(String, Value)> {
        let kind = json!({"type": self.rng.pick(&["number", "integer"])});
        let names = match self.rng.below(6) {
            0..3 => ["a", "b"].map(str::to_owned),
            3 => ["x", "y"].map(str::to_owned),
            4 => ["first", "second"].map(str::to_owned),
            _ => [self.invented(), self.invented() + "2"],
        };
        names.into_iter().map(|name| (name, kind.clone())).collect()
    }

    fn calculator(&mut self, does: Does) -> Function {
        let name = self.function_name(CALCULATORS, &["calc", "math", "compute", "eval"]);
        let description = self.described(&[
            "Calculates.",
            "Evaluates an arithmetic expression.",
            "A calculator.",
            "Works out a sum, difference, product or quotient.",
            "Does arithmetic.",
            "Use this for every calculation.",
            "Evaluate a mathematical expression and return the result.",
        ]);
        let parameters = match does {
            Does::Formula => {
                let name = self.parameter(&["expression", "expression", "formula", "input", "expr", "query"]);
                vec![(name, json!({"type": "string"}))]
            }
            _ => {
                let mut parameters = self.two_numbers();
                let values = match self.rng.chance(60) {
                    true => json!(["+", "-", "*", "/"]),
                    false => json!(["add", "subtract", "multiply", "divide"]),
                };
                let name = self.parameter(&["operator", "operation", "op"]);
                let at = if self.rng.chance(70) { parameters.len() } else { 0 };
                parameters.insert(at, (name, json!({"type": "string", "enum": values})));
                parameters
            }
        };
        Function { name, description, parameters, does }
    }

    fn operation(&mut self, (sign, names, description): (char, &[&str], &str)) -> Function {
        let name = self.function_name(names, &names[..1]);
        let description = self.described(&[description]);
        Function { name, description, parameters: self.two_numbers(), does: Does::Operation(sign) }
    }

    fn place(&mut self, does: Does) -> Function {
        let (known, hints, descriptions): (&[&str], &[&str], &[&str]) = match does {
            Does::Time => (
                &["get_time", "time", "current_time", "clock"],
                &["time"],
                &["Tells the time in a city.", "The current time at a place."],
            ),
            _ => (
                &["get_weather", "weather", "get_current_weather", "forecast"],
                &["weather"],
                &["Tells the weather in a city.", "Get the current weather for a location.", "Weather."],
            ),
        };
        let name = self.function_name(known, hints);
        let description = self.described(descriptions);
        let city = self.parameter(&["city", "location", "place"]);
        let mut parameters = vec![(city, json!({"type": "string"}))];
        if does == Does::Weather && self.rng.chance(30) {
            parameters
                .push(("unit".to_owned(), json!({"type": "string", "enum": ["celsius", "fahrenheit"]})));
        }
        Function { name, description, parameters, does }
    }

    /// A question for the first function, or one of its kind.
    fn errand(&mut self, functions: &[Function]) -> Errand {
        let alike = |function: &&Function| {
            std::mem::discriminant(&function.does) == std::mem::discriminant(&functions[0].does)
        };
        let candidates: Vec<&Function> = functions.iter().filter(alike).collect();
        let function = candidates[self.rng.below(candidates.len())];
        match function.does {
            Does::Weather | Does::Time => self.place_errand(function),
            _ => self.calculation(function),
        }
    }

    fn place_errand(&mut self, function: &Function) -> Errand {
        let mut city = capital(&self.known_or_invented(CITIES, 45));
        if self.rng.chance(15) {
            city = format!("{city} {}", capital(&self.invented()));
        }
        let weather = function.does == Does::Weather;
        let wordings: &Wordings = if weather { &WEATHER } else { &TIME };
        let mut user = self.wording(wordings).replace("{c}", &city);
        let mut arguments = Map::new();
        for (at, (name, _)) in function.parameters.iter().enumerate() {
            let fahrenheit = at > 0 && self.rng.chance(40);
            let value = match (at, fahrenheit) {
                (0, _) => city.as_str(),
                (_, true) => "fahrenheit",
                (_, false) => "celsius",
            };
            arguments.insert(name.clone(), json!(value));
            if fahrenheit {
                user.push_str(" In fahrenheit, please.");
            }
        }
        let (result, said) = if weather {
            let (degrees, sky) = (self.rng.between(0, 39), self.rng.pick(SKIES));
            let result = match self.rng.chance(50) {
                true => format!("{degrees} degrees, {sky}"),
                false => json!({"temperature": degrees, "condition": sky}).to_string_spaced(),
            };
            (result, format!("It is {degrees} degrees and {sky} in {city}."))
        } else {
            let time = format!("{:02}:{:02}", self.rng.between(0, 23), self.rng.between(0, 59));
            let result = match self.rng.chance(50) {
                true => time.clone(),
                false => json!({"time": time}).to_string_spaced(),
            };
            (result, format!("It is {time} in {city}."))
        };
        Errand { user, name: function.name.clone(), arguments: Value::Object(arguments), result, said }
    }

    /// Operands of up to four digits, of the split.
    fn operands(&mut self) -> (u32, u32) {
        loop {
            let digits = 1 + self.rng.below(4);
            let a = self.number(digits);
            let digits = 1 + self.rng.below(4);
            let b = self.number(digits).max(1);
            if is_held_out(a, b) == self.is_held_out() {
                return (a, b);
            }
        }
    }

    fn calculation(&mut self, function: &Function) -> Errand {
        let (a, b) = self.operands();
        let sign = match function.does {
            Does::Operation(sign) => sign,
            _ => ['+', '-', '*', '/'][self.rng.below(4)],
        };
        let wordings = match sign {
            '+' => SUMS,
            '-' => DIFFERENCES,
            '*' => PRODUCTS,
            _ => QUOTIENTS,
        };
        let whole = function.parameters.iter().any(|(_, schema)| schema["type"] == "integer");
        let (a_text, b_text) = match !whole && self.rng.chance(8) {
            true => (format!("{a}.{}", self.rng.between(1, 9)), b.to_string()),
            false => (a.to_string(), b.to_string()),
        };
        let wording = self.rng.pick(wordings);
        let user = self.soften(wording.replace("{a}", &a_text).replace("{b}", &b_text));
        let number = |text: &str| -> Value { serde_json::from_str(text).unwrap_or_else(|_| json!(text)) };
        let mut numbers = [number(&a_text), number(&b_text)].into_iter();
        let mut arguments = Map::new();
        for (name, schema) in &function.parameters {
            let value = match (function.does, schema.get("enum")) {
                (Does::Formula, _) => json!(format!("{a_text} {sign} {b_text}")),
                (_, Some(values)) => {
                    let at = "+-*/".find(sign).unwrap_or_default();
                    values.get(at).cloned().unwrap_or_default()
                }
                _ => numbers.next().unwrap_or_default(),
            };
            arguments.insert(name.clone(), value);
        }
        let (a, b) = (i64::from(a), i64::from(b));
        let number = match sign {
            '+' => a + b,
            '-' => a - b,
            '*' => a * b,
            _ => a / b,
        };
        let mut number = number.to_string();
        if sign == '/' && self.rng.chance(50) || a_text.contains('.') {
            number = format!("{number}.{}", self.rng.between(1, 99));
        }
        let (result, said) = match self.rng.below(100) {
            0..55 => (number.clone(), format!("The result is {number}.")),
            55..90 => {
                let key = self.rng.pick(&["result", "value", "answer", "output"]);
                (format!("{{\"{key}\": {number}}}"), format!("The result is {number}."))
            }
            _ => {
                let why = self.rng.pick(&["invalid input", "division by zero", "timeout", "overflow"]);
                (format!("error: {why}"), format!("The call failed: {why}."))
            }
        };
        Errand { user, name: function.name.clone(), arguments: Value::Object(arguments), result, said }
    }
}

impl Errand {
    /// The call as the model writes it.
    fn call(&self) -> String {
        let (name, arguments) = (json!(self.name), self.arguments.to_string_spaced());
        format!("<tool_call>\n{{\"name\": {name}, \"arguments\": {arguments}}}\n</tool_call>")
    }

    /// Question, call and result, as they come back to the model.
    fn called(&self) -> [Message; 3] {
        let mut calling = Message::new(ChatRole::Assistant, "");
        calling.tool_calls = vec![ToolCall {
            id: "call".into(),
            name: self.name.clone(),
            arguments: self.arguments.to_string_spaced(),
        }];
        let user = Message::new(ChatRole::User, self.user.as_str());
        [user, calling, Message::new(ChatRole::Tool, self.result.as_str())]
    }
}

impl Function {
    fn definition(&self) -> ToolDefinition {
        let properties: Map<String, Value> = self.parameters.iter().cloned().collect();
        let required: Vec<&String> = self.parameters.iter().map(|(name, _)| name).collect();
        let schema = json!({"type": "object", "properties": properties, "required": required});
        ToolDefinition {
            name: self.name.clone(),
            description: self.description.clone(),
            parameters: Some(schema.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::source::{Rng, Split};
    use super::*;
    use crate::tools::{ToolEvent, ToolFormat, ToolParser, validate_tools};

    #[test]
    fn every_call_is_read_back_and_fills_in_every_parameter() {
        let mut source = Source { rng: Rng::new(6), split: Split::Trained };
        for _ in 0..1_000 {
            let Offered { row, call } = source.offered(Ending::Call);
            let (name, arguments) = call.unwrap();
            validate_tools(&row.tools).unwrap();
            let tool = row.tools.iter().find(|tool| tool.name == name).unwrap();
            let schema: Value = serde_json::from_str(tool.parameters.as_ref().unwrap()).unwrap();
            let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(&schema["properties"]), keys(&arguments));
            let mut parser = ToolParser::new(ToolFormat::Hermes, row.tools.iter().map(|t| t.name.as_str()));
            let mut events = parser.push(&row.answer_text());
            events.extend(parser.finish());
            assert!(events.iter().any(|event| matches!(event, ToolEvent::CallEnded { whole: true, .. })));
        }
    }

    #[test]
    fn an_operation_is_asked_of_the_function_that_does_it() {
        let mut source = Source { rng: Rng::new(7), split: Split::Trained };
        for _ in 0..2_000 {
            let Offered { row, call } = source.offered(Ending::Call);
            let (name, _) = call.unwrap();
            let user = &row.messages.last().unwrap().content.to_lowercase();
            if name == "add" {
                assert!(user.contains('+') || ["plus", "add", "sum"].iter().any(|word| user.contains(word)));
            }
            if name == "multiply" {
                assert!(["*", "times", "multipl", "product", "x"].iter().any(|word| user.contains(word)));
            }
        }
    }

    #[test]
    fn functions_of_the_evaluation_have_names_that_are_never_trained() {
        let names = |split| -> BTreeSet<String> {
            let mut source = Source { rng: Rng::new(8), split };
            let rows = (0..3_000).flat_map(|_| source.offered(Ending::Call).row.tools);
            rows.map(|tool| tool.name).collect()
        };
        assert!(names(Split::Trained).is_disjoint(&names(Split::HeldOut)));
    }
}
