//! The training loop: batches by length, AdamW, a cosine schedule, checkpoints that resume.
//!
//! Everything drawn depends on the seed and the step alone, so a run that is stopped and resumed sees
//! the batches it would have seen. A checkpoint is a folder with the weights, the optimiser's moments
//! and [`Progress`]; it is written beside the old one and renamed over it.

#![allow(clippy::disallowed_methods, reason = "a training run measures its own time")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::grad_clipping::GradientClippingConfig;
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::Device;

use super::chat::{Chat, ChatError, Example};
use super::corpus::{Corpus, Kind, Mix, Split};
use super::model::{Batch, Net, Shape, Tables};
use super::source::Rng;

/// Answers about facts differ from each other within this many tokens. What is hard about them is to
/// tell which one is asked for, not to recite the rest, so most rows need no more than this.
const OPENING: usize = 8;
/// Batches that are drawn at once.
const POOL: usize = 16;

/// What a run is asked to do.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Plan {
    /// Shape of the decoder.
    pub shape: Shape,
    /// Seed of weights and corpus.
    pub seed: u64,
    /// Steps of the whole schedule, resumed parts included.
    pub steps: u64,
    /// Tokens in one thread's share of a batch, before padding.
    pub batch_tokens: usize,
    /// Threads that each take a share of the batch; their gradients are averaged.
    pub threads: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warm_up: u64,
    /// Learning rate at the end, as a share of the highest.
    pub floor: f64,
    /// Shares of the tasks.
    pub mix: Mix,
    /// Rows about facts, of 100, that end after the first tokens of the answer.
    #[serde(default)]
    pub cut: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            shape: Shape::tiny(),
            seed: 1,
            steps: 8_000,
            batch_tokens: 1536,
            threads: 1,
            learning_rate: 3e-3,
            warm_up: 150,
            floor: 0.02,
            mix: Mix::default(),
            cut: 60,
        }
    }
}

impl Plan {
    /// The learning rate of a step: linear warm-up, then half a cosine down to the floor.
    pub fn rate(&self, step: u64) -> f64 {
        let warm = ((step + 1) as f64 / self.warm_up.max(1) as f64).min(1.0);
        let done = (step as f64 / self.steps.max(1) as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.learning_rate * warm * (self.floor + (1.0 - self.floor) * cosine)
    }
}

/// How far a run has come.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Tokens seen, padding excluded.
    pub tokens: u64,
    /// Rows seen.
    pub rows: u64,
    /// Wall-clock seconds of all parts.
    pub wall_s: f64,
    /// Processor seconds of all parts.
    pub cpu_s: f64,
    /// Mean loss of the newest steps.
    pub loss: f64,
}

/// Why a run could not go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A file could not be read or written.
    #[error("{action} {}: {source}; check the folder given with --out", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A checkpoint is not what it should be.
    #[error("checkpoint file {} is unusable: {reason}; delete the folder to start afresh", path.display())]
    Checkpoint {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A row could not be written down.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The loss is no longer a number.
    #[error("the loss is {loss} at step {step}; lower --learning-rate")]
    Diverged {
        /// At which step.
        step: u64,
        /// The loss.
        loss: f64,
    },
}

/// A run in progress.
pub struct Trainer {
    /// What was asked.
    pub plan: Plan,
    /// How far it is.
    pub progress: Progress,
    chat: Chat,
    net: Net,
    optimizer: ModuleOptimizer,
    device: Device,
    /// The newest pool of batches, and its number.
    pool: Option<(u64, Vec<Batch>)>,
    started: Instant,
    wall_before: f64,
    cpu_before: f64,
    cpu_start: f64,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("plan", &self.plan)
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

/// Loss and gradients of one thread's share, already divided by the number of shares.
fn share(net: &Net, shape: &Shape, device: &Device, batch: &Batch, shares: usize) -> (f64, GradientsParams) {
    // The fork has leaves of its own: two threads' graphs that met in one leaf would be one graph.
    let net = &net.clone().fork(device);
    let tables = Tables::new(shape, batch.length, device);
    let loss = net.loss(batch, &tables, device).div_scalar(shares as f64);
    let gradients = GradientsParams::from_grads(loss.backward(), net);
    (f64::from(loss.into_scalar::<f32>()), gradients)
}

fn optimizer() -> ModuleOptimizer {
    AdamWConfig::new()
        .with_beta_2(0.98)
        .with_epsilon(1e-8)
        .with_weight_decay(0.02)
        .with_grad_clipping(Some(GradientClippingConfig::Norm(1.0)))
        .init()
}

impl Trainer {
    /// Fresh weights.
    pub fn new(plan: Plan, chat: Chat) -> Self {
        let device = Device::flex().autodiff();
        device.seed(plan.seed);
        let net = Net::new(&plan.shape, &device);
        // Parameters are drawn at their first use; use them all while the generator stands at the seed,
        // or another trainer, or the order of the threads, would decide what they are.
        let _ = net.tensors();
        Self {
            chat,
            net,
            pool: None,
            optimizer: optimizer(),
            device,
            progress: Progress::default(),
            plan,
            started: Instant::now(),
            wall_before: 0.0,
            cpu_before: 0.0,
            cpu_start: cpu_seconds(),
        }
    }

    /// Goes on from a checkpoint folder; the plan's shape and seed must be those of the checkpoint.
    pub fn resume(plan: Plan, chat: Chat, dir: &Path) -> Result<Self, TrainError> {
        let mut trainer = Self::new(plan, chat);
        let path = dir.join("progress.json");
        let text = std::fs::read(&path).map_err(|source| TrainError::File {
            action: "reading",
            path: path.clone(),
            source,
        })?;
        trainer.progress = serde_json::from_slice(&text)
            .map_err(|error| TrainError::Checkpoint { path, reason: error.to_string() })?;
        let weights = dir.join("weights.bpk");
        if !weights.exists() {
            return Err(TrainError::Checkpoint { path: weights, reason: "it is missing".to_owned() });
        }
        trainer.net = trainer.net.load_file(&weights);
        let moments = dir.join("optimizer.bpk");
        trainer.optimizer = optimizer()
            .load(&moments)
            .map_err(|error| TrainError::Checkpoint { path: moments, reason: error.to_string() })?;
        trainer.wall_before = trainer.progress.wall_s;
        trainer.cpu_before = trainer.progress.cpu_s;
        Ok(trainer)
    }

    /// The decoder as it stands.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// Template and tokenizer.
    pub fn chat(&self) -> &Chat {
        &self.chat
    }

    /// The device it lives on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// One thread's share of a step.
    fn batch(&mut self, share: u64) -> Result<Batch, TrainError> {
        let block = share / POOL as u64;
        if self.pool.as_ref().is_none_or(|(number, _)| *number != block) {
            self.pool = Some((block, self.fill(block)?));
        }
        let part = (share % POOL as u64) as usize;
        let batches = self.pool.as_ref().map(|(_, batches)| batches.as_slice()).unwrap_or_default();
        Ok(batches.get(part).cloned().unwrap_or_default())
    }

    /// A pool of batches. Its rows are sorted by length before they are cut into batches, so that little of
    /// a batch is padding.
    fn fill(&self, block: u64) -> Result<Vec<Batch>, TrainError> {
        let seed = self.plan.seed.wrapping_mul(0x1000_0000_01b3) ^ (block << 1 | 1);
        let mut corpus = Corpus::new(seed, self.plan.mix, Split::Trained);
        let mut rows = Vec::new();
        let mut tokens = 0;
        let mut cut = Rng::new(self.plan.seed ^ block);
        while tokens < POOL * self.plan.batch_tokens {
            let row = corpus.row();
            let mut example = self.chat.example(&row)?;
            if row.kind == Kind::Fact && cut.chance(self.plan.cut) {
                example.truncate(example.answer + OPENING);
            }
            if example.ids.len() <= self.plan.shape.max_position_embeddings {
                tokens += example.ids.len();
                rows.push(example);
            }
        }
        rows.sort_by_key(|example| example.ids.len());
        let mut batches = Vec::with_capacity(POOL);
        let mut rest = rows.as_slice();
        for left in (1..=POOL).rev() {
            // Equal shares of what is left, at least one row each.
            let all: usize = rest.iter().map(|example| example.ids.len()).sum();
            let mut sum = 0;
            let fits = |example: &&Example| {
                sum += example.ids.len();
                sum * left <= all
            };
            let count = rest.iter().take_while(fits).count().clamp(1, rest.len());
            let (part, after) = rest.split_at(if left == 1 { rest.len() } else { count });
            batches.push(Batch::new(part));
            rest = if after.is_empty() { part } else { after };
        }
        // Visit them in a drawn order, else every pool would run from short rows to long ones.
        Rng::new(self.plan.seed ^ block.wrapping_mul(0x9e37_79b9)).shuffle(&mut batches);
        Ok(batches)
    }

    /// One step; returns its loss.
    pub fn step(&mut self) -> Result<f64, TrainError> {
        let step = self.progress.step;
        let threads = self.plan.threads.max(1);
        let first = step * threads as u64;
        let shares: Vec<Batch> =
            (first..first + threads as u64).map(|share| self.batch(share)).collect::<Result<_, _>>()?;
        let gradients = std::thread::scope(|scope| {
            let work = |batch| {
                let (net, shape, device) = (self.net.clone(), &self.plan.shape, self.device.clone());
                move || share(&net, shape, &device, batch, threads)
            };
            let others: Vec<_> = shares.iter().skip(1).map(|batch| scope.spawn(work(batch))).collect();
            let first = shares.first().map(|batch| work(batch)());
            let rest = others.into_iter().filter_map(|thread| thread.join().ok());
            first.into_iter().chain(rest).collect::<Vec<_>>()
        });
        let mut sum = GradientsAccumulator::new();
        let mut loss = 0.0;
        for (part, gradients) in gradients {
            loss += part;
            sum.accumulate(&self.net, gradients);
        }
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step, loss });
        }
        self.net = self.optimizer.step(self.plan.rate(step), self.net.clone(), sum.grads());
        self.progress.step += 1;
        self.progress.rows += shares.iter().map(|batch| batch.rows as u64).sum::<u64>();
        self.progress.tokens += shares.iter().map(|batch| batch.positions.len() as u64).sum::<u64>();
        self.progress.loss = if step == 0 { loss } else { 0.98 * self.progress.loss + 0.02 * loss };
        self.progress.wall_s = self.wall_before + self.started.elapsed().as_secs_f64();
        self.progress.cpu_s = self.cpu_before + cpu_seconds() - self.cpu_start;
        Ok(loss)
    }

    /// Writes a checkpoint folder, replacing the last one only when the new one is complete.
    pub fn save(&self, dir: &Path) -> Result<(), TrainError> {
        let fail = |action: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source: std::io::Error| TrainError::File { action, path, source }
        };
        let fresh = dir.with_extension("new");
        let old = dir.with_extension("old");
        let _ = std::fs::remove_dir_all(&fresh);
        std::fs::create_dir_all(&fresh).map_err(fail("creating", &fresh))?;
        let weights = fresh.join("weights.bpk");
        let unusable = |path: &Path, reason: String| TrainError::Checkpoint { path: path.to_owned(), reason };
        self.net.clone().save_file(&weights).map_err(|error| unusable(&weights, error.to_string()))?;
        let moments = fresh.join("optimizer.bpk");
        self.optimizer.save(&moments).map_err(|error| unusable(&moments, error.to_string()))?;
        let progress = fresh.join("progress.json");
        let text = serde_json::to_vec_pretty(&self.progress)
            .map_err(|error| unusable(&progress, error.to_string()))?;
        std::fs::File::create(&progress)
            .and_then(|mut file| file.write_all(&text))
            .map_err(fail("writing", &progress))?;
        let _ = std::fs::remove_dir_all(&old);
        if dir.exists() {
            std::fs::rename(dir, &old).map_err(fail("moving away", dir))?;
        }
        std::fs::rename(&fresh, dir).map_err(fail("moving into place", &fresh))
    }

    /// Steps until the plan or the time is used up, reporting and saving on the way.
    pub fn run(
        &mut self,
        limit: Option<Duration>,
        save_every: Duration,
        checkpoint: &Path,
        report: &mut dyn FnMut(&Progress, &Net, &Device, bool),
    ) -> Result<(), TrainError> {
        let start = Instant::now();
        let mut saved = Instant::now();
        while self.progress.step < self.plan.steps && limit.is_none_or(|limit| start.elapsed() < limit) {
            self.step()?;
            let save = saved.elapsed() >= save_every;
            if save {
                self.save(checkpoint)?;
                saved = Instant::now();
            }
            report(&self.progress, &self.net, &self.device, save);
        }
        self.save(checkpoint)
    }
}

/// Processor seconds of this process so far, where the system tells (Linux), else 0.
pub fn cpu_seconds() -> f64 {
    // Fields 14 and 15 of /proc/self/stat are user and system time in ticks of a hundredth of a second.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 =
        after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::Tokens;
    use super::*;

    fn chat() -> Chat {
        Chat::new(Tokens::learn().unwrap()).unwrap()
    }

    fn plan() -> Plan {
        Plan {
            shape: Shape::small(),
            steps: 60,
            batch_tokens: 512,
            warm_up: 10,
            learning_rate: 5e-3,
            ..Plan::default()
        }
    }

    #[test]
    fn fifty_steps_lower_the_loss() {
        let mut trainer = Trainer::new(plan(), chat());
        let losses: Vec<f64> = (0..50).map(|_| trainer.step().unwrap()).collect();
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&losses[..5]), mean(&losses[45..]));
        assert!(first > 5.5, "an untrained model cannot know better than ln 1024 = 6.93: {first}");
        assert!(last < first - 1.5, "{first} fell to {last} only");
    }

    #[test]
    fn a_resumed_run_goes_on_as_if_it_had_not_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = dir.path().join("checkpoint");
        let mut whole = Trainer::new(plan(), chat());
        let mut first = Trainer::new(plan(), chat());
        for _ in 0..3 {
            whole.step().unwrap();
            first.step().unwrap();
        }
        first.save(&checkpoint).unwrap();
        let mut second = Trainer::resume(plan(), chat(), &checkpoint).unwrap();
        assert_eq!(second.progress.step, 3);
        for _ in 0..3 {
            let (expected, found) = (whole.step().unwrap(), second.step().unwrap());
            assert!((expected - found).abs() < 1e-5, "{expected} became {found}");
        }
    }

    #[test]
    fn a_missing_or_broken_checkpoint_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Trainer::resume(plan(), chat(), dir.path()).unwrap_err().to_string();
        assert!(error.contains("progress.json"), "{error}");
        std::fs::write(dir.path().join("progress.json"), "{").unwrap();
        let error = Trainer::resume(plan(), chat(), dir.path()).unwrap_err().to_string();
        assert!(error.contains("delete the folder"), "{error}");
    }

    #[test]
    fn the_rate_warms_up_and_falls_to_the_floor() {
        let plan = plan();
        assert!(plan.rate(0) < plan.rate(9));
        assert!(plan.rate(10) > plan.rate(40));
        assert!((plan.rate(60) - plan.learning_rate * plan.floor).abs() < 1e-9);
    }
}
