//! Trains, exports and evaluates the embedded model; see `docs/model.md`.
#![allow(clippy::disallowed_methods, reason = "progress lines and the evaluation measure time")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cocoon_inference::train::chat::Chat;
use cocoon_inference::train::corpus::{Corpus, Mix, Split};
use cocoon_inference::train::questions::{self, Score};
use cocoon_inference::train::tokenizer::Tokens;
use cocoon_inference::train::trainer::{Plan, Trainer};
use cocoon_inference::train::{evaluation, export};
use cocoon_inference::{BurnEngine, Engine};
use serde_json::json;

const HELP: &str = "\
Trains, exports and evaluates the embedded model.

  cocoon-train run --out DIR [--resume] [--steps N] [--minutes N] [--seed N]
                   [--learning-rate F] [--batch-tokens N] [--mix A,F,W,C,M,S,J,T] [--cut N]
      trains until N steps of the schedule are done or the minutes are over; DIR/checkpoint
      is written every two minutes, and --resume goes on from it; --mix is how many rows of 100
      are arithmetic, facts, words, counting, comparing, system prompts, JSON and functions
  cocoon-train export --out DIR --dir MODEL
      writes DIR/checkpoint as a Hugging Face checkpoint directory
  cocoon-train eval --dir MODEL [--json] [--questions N] [--each N] [--show N]
      asks held-out questions through the serving engine, greedily: N of arithmetic, N of each
      other category, every wording of the facts
  cocoon-train corpus [--print N] [--seed N]
      prints rows of the training text";

type Failure = Box<dyn std::error::Error>;

/// `--name value` pairs and bare `--flags` after the command.
struct Options(Vec<String>);

impl Options {
    fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|word| word == name)
    }

    fn value<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Failure> {
        let Some(at) = self.0.iter().position(|word| word == name) else { return Ok(None) };
        let text = self.0.get(at + 1).ok_or_else(|| format!("{name} needs a value"))?;
        text.parse().map(Some).map_err(|_| format!("{name}: cannot read {text:?}").into())
    }

    fn path(&self, name: &str) -> Result<PathBuf, Failure> {
        self.value(name)?.ok_or_else(|| format!("{name} is missing; see cocoon-train --help").into())
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let options = Options(words.collect());
    let done = match command.as_str() {
        "run" => run(&options),
        "export" => write_model(&options),
        "eval" => eval(&options),
        "corpus" => print_corpus(&options),
        _ => {
            println!("{HELP}");
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cocoon-train: {error}");
            ExitCode::FAILURE
        }
    }
}

fn plan(options: &Options, out: &Path) -> Result<Plan, Failure> {
    let stored = out.join("plan.json");
    let mut plan =
        if stored.exists() { serde_json::from_slice(&std::fs::read(&stored)?)? } else { Plan::default() };
    if let Some(steps) = options.value("--steps")? {
        plan.steps = steps;
    }
    if let Some(seed) = options.value("--seed")? {
        plan.seed = seed;
    }
    if let Some(rate) = options.value("--learning-rate")? {
        plan.learning_rate = rate;
    }
    if let Some(tokens) = options.value("--batch-tokens")? {
        plan.batch_tokens = tokens;
    }
    if let Some(cut) = options.value("--cut")? {
        plan.cut = cut;
    }
    if let Some(mix) = options.value::<String>("--mix")? {
        let shares: Vec<usize> = mix.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let [arithmetic, fact, word, count, compare, manner, form, function] = shares[..] else {
            return Err("--mix wants eight numbers".into());
        };
        plan.mix = Mix { arithmetic, fact, word, count, compare, manner, form, function };
    }
    std::fs::create_dir_all(out)?;
    std::fs::write(&stored, serde_json::to_vec_pretty(&plan)?)?;
    Ok(plan)
}

/// Template and tokenizer of a run. The tokenizer is learned once, so that a resumed run has the ids that its
/// weights were trained with.
fn chat(out: &Path) -> Result<Chat, Failure> {
    let stored = out.join("tokenizer.json");
    if stored.exists() {
        return Ok(Chat::new(Tokens::read(&std::fs::read(&stored)?)?)?);
    }
    let tokens = Tokens::learn()?;
    std::fs::create_dir_all(out)?;
    std::fs::write(&stored, format!("{:#}\n", tokens.file()))?;
    Ok(Chat::new(tokens)?)
}

fn percent(score: &Score) -> String {
    score.iter().map(|(name, (right, all))| format!("{name} {right}/{all}")).collect::<Vec<_>>().join("; ")
}

fn run(options: &Options) -> Result<(), Failure> {
    let out = options.path("--out")?;
    let checkpoint = out.join("checkpoint");
    let resume = options.flag("--resume") && checkpoint.exists();
    let plan = plan(options, &out)?;
    let limit = options.value::<f64>("--minutes")?.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    let shape = plan.shape.clone();
    let (taught, asked_in) = (chat(&out)?, chat(&out)?);
    let mut trainer =
        if resume { Trainer::resume(plan, taught, &checkpoint)? } else { Trainer::new(plan, taught) };
    let mut asked = questions::arithmetic(7, 64);
    asked.extend(questions::facts().into_iter().step_by(4));
    asked.extend(questions::others(7, 8));
    let started = Instant::now();
    let mut told = Instant::now();
    trainer.run(limit, Duration::from_secs(120), &checkpoint, &mut |progress, net, device, saved| {
        if told.elapsed() > Duration::from_secs(15) || progress.step == 1 {
            told = Instant::now();
            println!(
                "{:6.0}s step {} rows {} loss {:.4} cpu {:.0}s",
                started.elapsed().as_secs_f64(),
                progress.step,
                progress.rows,
                progress.loss,
                progress.cpu_s
            );
        }
        if saved {
            match questions::quick(net, &shape, &device.clone().inner(), &asked_in, &asked) {
                Ok(score) => println!("        held out, word for word: {}", percent(&score)),
                Err(error) => eprintln!("cocoon-train: {error}"),
            }
        }
    })?;
    println!("{}", serde_json::to_string(&trainer.progress)?);
    Ok(())
}

fn write_model(options: &Options) -> Result<(), Failure> {
    let out = options.path("--out")?;
    let dir = options.path("--dir")?;
    let plan: Plan = serde_json::from_slice(&std::fs::read(out.join("plan.json"))?)?;
    let trainer = Trainer::resume(plan, chat(&out)?, &out.join("checkpoint"))?;
    let progress = &trainer.progress;
    let hours = |seconds: f64| (seconds / 36.0).round() / 100.0;
    let record = json!({
        "command": format!(
            "cocoon-train run --out DIR --steps {} --seed {} --batch-tokens {} --learning-rate {} --cut {}",
            trainer.plan.steps, trainer.plan.seed, trainer.plan.batch_tokens, trainer.plan.learning_rate,
            trainer.plan.cut,
        ),
        "seed": trainer.plan.seed,
        "data": "generated by inference/src/train from the seed; nothing downloaded",
        "plan": trainer.plan,
        "steps": progress.step,
        "rows": progress.rows,
        "answer_tokens": progress.tokens,
        "wall_hours": hours(progress.wall_s),
        "cpu_hours": hours(progress.cpu_s),
    });
    export::write(trainer.net(), &trainer.plan.shape, trainer.chat().tokens(), &record, &dir)?;
    Ok(())
}

fn eval(options: &Options) -> Result<(), Failure> {
    let dir = options.path("--dir")?;
    let json_only = options.flag("--json");
    let engine = BurnEngine::load(&dir, None, &mut |_, _| {})?;
    let info = engine.info().clone();
    let mut asked = questions::arithmetic(2026, options.value("--questions")?.unwrap_or(2_000));
    asked.extend(questions::facts());
    asked.extend(questions::others(2026, options.value("--each")?.unwrap_or(100)));
    let mut show = options.value::<usize>("--show")?.unwrap_or(0);
    let (mut score, mut groups) = (Score::new(), Score::new());
    let (mut tokens, started) = (0u64, Instant::now());
    for question in &asked {
        let (given, made) = evaluation::ask(&engine, question)?;
        tokens += u64::from(made);
        let right = question.expected.accepts(&given);
        if !right && show > 0 {
            show -= 1;
            eprintln!(
                "wrong: {}: {:?} -> {given:?}, not {:?}",
                question.category,
                question.row.messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>(),
                question.expected
            );
        }
        for (table, name) in [(&mut score, question.category), (&mut groups, question.group)] {
            let entry = table.entry(name.to_owned()).or_default();
            entry.0 += usize::from(right);
            entry.1 += 1;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let rows = |table: &Score| {
        let row = |(name, (right, all)): (&String, &(usize, usize))| json!({"name": name, "right": right, "asked": all, "percent": (*right as f64 / *all as f64 * 1e4).round() / 100.0});
        table.iter().map(row).collect::<Vec<_>>()
    };
    let record = json!({
        "model": format!("{}@{}", info.name, hex::encode(info.digest)),
        "parameters": info.parameters,
        "totals": rows(&groups),
        "categories": rows(&score),
        "tokens_per_s": (tokens as f64 / seconds).round(),
        "seconds": seconds.round(),
    });
    if json_only {
        println!("{record:#}");
        return Ok(());
    }
    println!("{}@{}, {} parameters", info.name, hex::encode(info.digest), info.parameters);
    for (table, title) in [(&score, "category"), (&groups, "total")] {
        println!("\n{title:<42} right   asked  percent");
        for (name, (right, all)) in table {
            println!("{name:<42} {right:>5} {all:>7} {:>8.2}", *right as f64 / *all as f64 * 100.0);
        }
    }
    println!("\n{tokens} tokens in {seconds:.0} s\n{record}");
    Ok(())
}

fn print_corpus(options: &Options) -> Result<(), Failure> {
    let chat = Chat::new(Tokens::learn()?)?;
    let mut corpus = Corpus::new(options.value("--seed")?.unwrap_or(1), Mix::default(), Split::Trained);
    for _ in 0..options.value("--print")?.unwrap_or(20) {
        let row = corpus.row();
        let tokens = chat.example(&row)?.ids.len();
        println!("{:?}, {tokens} tokens\t{}", row.kind, chat.text(&row)?.replace('\n', "\\n"));
    }
    Ok(())
}
