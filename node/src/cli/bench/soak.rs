//! `cocoon bench soak`: many askers of every kind at one engine, for as long as it takes to see a leak.
//!
//! Askers come and go: some pay at once, some in small steps, some never; some hang up in the middle; some send a
//! prompt as long as the context. Some answers are computed again alone and compared. At the end no block of the
//! cache may be held, and memory may not have grown.

// A shell: measuring is what it is for.
#![allow(clippy::disallowed_methods, reason = "a benchmark measures time")]

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use clap::Args as ClapArgs;
use cocoon_inference::{
    BurnEngine, ChatRole, Engine as _, FinishReason, GenerateRequest, Message, Sampling, complete,
    device::DeviceChoice,
    kernels::Precision,
    runner::{Event, JobHandle, Runner, RunnerLimits, Terms},
};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;

use crate::cli::{model::load_or_embedded, output};

/// Memory may grow by this much between the first fifth of the run and the last: what the allocator keeps around.
const GROWTH: f64 = 32.0 * 1024.0 * 1024.0;
/// One answer in so many is computed again.
const CHECKED: u64 = 16;
/// How many steps' tokens a slow asker pays for at once.
const SLOW_TOKENS: u32 = 4;
const SLOW_PAUSE: Duration = Duration::from_millis(15);

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// A checkpoint folder; absent, the embedded model
    folder: Option<PathBuf>,
    /// How the weights are kept: f32, f16, int8 or int4
    #[arg(long, default_value_t)]
    precision: Precision,
    /// Where it runs: cpu, cuda, cuda:N or auto
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// How long
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Askers at once
    #[arg(long, default_value_t = 24)]
    askers: usize,
    /// Answers that the engine makes at once
    #[arg(long, default_value_t = 8)]
    slots: usize,
    /// What the askers do
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What an asker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    Pays,
    PaysSlowly,
    NeverPays,
    HangsUp { after: u32 },
}

struct Asker {
    handle: JobHandle,
    habit: Habit,
    request: GenerateRequest,
    text: String,
    tokens: u32,
    paid: u32,
    /// When it next does something by itself.
    due: Option<Instant>,
}

#[derive(Debug, Default, serde::Serialize)]
struct Counts {
    asked: u64,
    finished: u64,
    cancelled: u64,
    displaced: u64,
    refused: u64,
    failed: u64,
    turned_away: u64,
    tokens: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    checked: u64,
    wrong: u64,
}

struct Soak {
    engine: BurnEngine,
    runner: Runner,
    rng: StdRng,
    askers: HashMap<u64, Asker>,
    next: u64,
    sender: Sender<(u64, Event)>,
    counts: Counts,
}

pub(in crate::cli) fn run(args: &Args) -> anyhow::Result<()> {
    let engine = load_or_embedded(args.folder.as_deref(), args.device, args.precision)?;
    let limits = RunnerLimits { slots: args.slots, queue: args.askers, ..RunnerLimits::default() };
    let (sender, events) = channel();
    let mut soak = Soak {
        runner: Runner::spawn(Arc::new(engine.clone()), limits)?,
        engine,
        rng: StdRng::seed_from_u64(args.seed),
        askers: HashMap::new(),
        next: 0,
        sender,
        counts: Counts::default(),
    };
    let bar = output::bar(args.seconds, "soaking");
    let started = Instant::now();
    let mut memory = Vec::new();
    while started.elapsed().as_secs() < args.seconds {
        while soak.askers.len() < args.askers {
            soak.ask();
        }
        soak.turn(&events)?;
        if memory.len() as u64 <= started.elapsed().as_secs() {
            memory.push(resident()?);
            bar.set_position(started.elapsed().as_secs());
        }
    }
    soak.drain(&events)?;
    bar.finish_and_clear();
    let part = memory.len() / 5 + 1;
    let most = |samples: &[f64]| samples.iter().copied().fold(0.0, f64::max);
    let (first, last) = (most(&memory[..part]), most(&memory[memory.len() - part..]));
    let load = soak.runner.load();
    let held = load.cache.blocks - load.cache.free - load.cache.kept;
    let sound = soak.counts.wrong == 0 && soak.counts.failed == 0 && held == 0 && last <= first + GROWTH;
    report(args, &soak.counts, first, last, load.cache.preempted, held)?;
    anyhow::ensure!(
        sound,
        "the soak found something: a wrong or failed answer, a held block or memory that grew"
    );
    Ok(())
}

fn report(
    args: &Args,
    counts: &Counts,
    first: f64,
    last: f64,
    preempted: u64,
    held: usize,
) -> anyhow::Result<()> {
    if args.json {
        output::json(&json!({
            "seconds": args.seconds, "askers": args.askers, "seed": args.seed, "counts": counts,
            "preempted": preempted, "held_blocks": held, "memory_first_bytes": first, "memory_last_bytes": last,
        }));
        return Ok(());
    }
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    output::line(format!(
        "{} s, {} askers: {} requests, {} answers, {} hung up or gave up, {} displaced, {} refused, {} turned away",
        args.seconds,
        args.askers,
        counts.asked,
        counts.finished,
        counts.cancelled,
        counts.displaced,
        counts.refused,
        counts.turned_away
    ));
    output::line(format!(
        "{} tokens read ({} from the cache), {} written; jobs gave way {preempted} times",
        counts.prompt_tokens, counts.cached_tokens, counts.tokens
    ));
    output::line(format!(
        "{} answers computed again alone: {} differ; {} failed; {held} blocks still held",
        counts.checked, counts.wrong, counts.failed
    ));
    output::line(format!(
        "memory: {:.1} MiB in the first fifth, {:.1} MiB in the last",
        mib(first),
        mib(last)
    ));
    Ok(())
}

impl Soak {
    fn ask(&mut self) {
        let rng = &mut self.rng;
        let context = self.engine.info().context;
        let habit = match rng.random_range(0..10u32) {
            0..5 => Habit::Pays,
            5..7 => Habit::PaysSlowly,
            7 => Habit::NeverPays,
            _ => Habit::HangsUp { after: rng.random_range(0..20) },
        };
        // A few askers come back with the same words, as conversations do.
        let asker = rng.random_range(0..6u64);
        let words = match rng.random_range(0..6u32) {
            0 => context as usize / 5,
            _ => rng.random_range(1..12),
        };
        let mut of_asker = StdRng::seed_from_u64(asker);
        let words: Vec<String> = (0..words).map(|_| format!("{:x}", of_asker.next_u32() & 0xfff)).collect();
        let sampling = Sampling {
            temperature: if rng.random_bool(0.5) { 1.0 } else { 0.0 },
            seed: rng.random(),
            max_tokens: Some(rng.random_range(1..context / 2)),
            ..Sampling::default()
        };
        let messages = vec![Message::new(ChatRole::User, words.join(" "))];
        let request = GenerateRequest::new(self.engine.info().digest, messages, sampling);
        let (id, sender) = (self.next, self.sender.clone());
        self.next += 1;
        self.counts.asked += 1;
        let sink = move |event| drop(sender.send((id, event)));
        let mut salt = [0; 32];
        salt[..8].copy_from_slice(&asker.to_le_bytes());
        match self.runner.submit(request.clone(), Terms::of(asker, salt), Box::new(sink)) {
            Ok(handle) => {
                let asker =
                    Asker { handle, habit, request, text: String::new(), tokens: 0, paid: 0, due: None };
                self.askers.insert(id, asker);
            }
            Err(_) => self.counts.turned_away += 1,
        }
    }

    /// Takes what happened, and lets those act whose time has come.
    fn turn(&mut self, events: &Receiver<(u64, Event)>) -> anyhow::Result<()> {
        if let Ok((id, event)) = events.recv_timeout(Duration::from_millis(2)) {
            self.event(id, event)?;
            while let Ok((id, event)) = events.try_recv() {
                self.event(id, event)?;
            }
        }
        let now = Instant::now();
        for asker in self.askers.values_mut().filter(|asker| asker.due.is_some_and(|due| due <= now)) {
            asker.due = None;
            match asker.habit {
                Habit::NeverPays => asker.handle.cancel(),
                _ => {
                    asker.paid += SLOW_TOKENS;
                    asker.handle.allow(asker.paid);
                }
            }
        }
        Ok(())
    }

    fn event(&mut self, id: u64, event: Event) -> anyhow::Result<()> {
        let Some(asker) = self.askers.get_mut(&id) else { return Ok(()) };
        match event {
            Event::Prepared { .. } => match asker.habit {
                Habit::Pays | Habit::HangsUp { .. } => asker.handle.allow(u32::MAX),
                Habit::PaysSlowly => asker.due = Some(Instant::now()),
                Habit::NeverPays => {
                    asker.due = Some(Instant::now() + Duration::from_millis(self.rng.random_range(10..1500)));
                }
            },
            Event::Tokens(tokens) => {
                asker.tokens += tokens.len() as u32;
                self.counts.tokens += tokens.len() as u64;
                tokens.iter().for_each(|token| asker.text.push_str(&token.text));
                match asker.habit {
                    Habit::HangsUp { after } if asker.tokens > after => asker.handle.cancel(),
                    Habit::PaysSlowly if asker.tokens >= asker.paid => {
                        asker.due = Some(Instant::now() + SLOW_PAUSE);
                    }
                    _ => {}
                }
            }
            Event::Finished { reason, text, usage } => {
                asker.text.push_str(&text);
                self.counts.prompt_tokens += u64::from(usage.prompt_tokens);
                self.counts.cached_tokens += u64::from(usage.cached_tokens);
                if reason == FinishReason::Cancelled {
                    self.counts.cancelled += 1;
                } else {
                    self.counts.finished += 1;
                    if self.counts.finished.is_multiple_of(CHECKED) {
                        let alone = complete(&self.engine, &asker.request, |_| ())?;
                        self.counts.checked += 1;
                        self.counts.wrong += u64::from(alone.text != asker.text);
                    }
                }
                self.askers.remove(&id);
            }
            Event::Rejected(_) => {
                self.counts.refused += 1;
                self.askers.remove(&id);
            }
            Event::Failed(_) => {
                self.counts.failed += 1;
                self.askers.remove(&id);
            }
            Event::Displaced => {
                self.counts.displaced += 1;
                self.askers.remove(&id);
            }
        }
        Ok(())
    }

    /// Lets all who are left hang up.
    fn drain(&mut self, events: &Receiver<(u64, Event)>) -> anyhow::Result<()> {
        self.askers.values().for_each(|asker| asker.handle.cancel());
        let patience = Instant::now() + Duration::from_secs(60);
        while !self.askers.is_empty() {
            anyhow::ensure!(Instant::now() < patience, "{} answers never ended", self.askers.len());
            self.turn(events)?;
        }
        Ok(())
    }
}

/// Resident memory of this process in bytes.
fn resident() -> anyhow::Result<f64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = statm.split_whitespace().nth(1).unwrap_or_default().parse()?;
    Ok(pages * 4096.0)
}
