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

use super::bytes;
use super::corpus::{Corpus, Kind, Mix, Rng};
use super::model::{Batch, Net, Shape, Tables};

/// Answers about facts differ from each other within this many tokens. What is hard about them is to
/// tell which one is asked for, not to recite the rest, so most rows need no more than this.
const OPENING: usize = 20;

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
    /// Rows about facts, of 100, that end after 20 tokens of the answer.
    #[serde(default)]
    pub cut: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            shape: Shape::tiny(),
            seed: 1,
            steps: 11_000,
            batch_tokens: 768,
            threads: 2,
            learning_rate: 3e-3,
            warm_up: 100,
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
    net: Net,
    optimizer: ModuleOptimizer,
    device: Device,
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
    pub fn new(plan: Plan) -> Self {
        let device = Device::flex().autodiff();
        device.seed(plan.seed);
        let net = Net::new(&plan.shape, &device);
        // Parameters are drawn at their first use; use them all while the generator stands at the seed,
        // or another trainer, or the order of the threads, would decide what they are.
        let _ = net.tensors();
        Self {
            net,
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
    pub fn resume(plan: Plan, dir: &Path) -> Result<Self, TrainError> {
        let mut trainer = Self::new(plan);
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

    /// The device it lives on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// One thread's share of a step. Shares are cut from a pool of rows sorted by length, so that
    /// little of a batch is padding.
    fn batch(&self, share: u64) -> Batch {
        const POOL: usize = 16;
        let block = share / POOL as u64;
        let mut corpus =
            Corpus::new(self.plan.seed.wrapping_mul(0x1000_0000_01b3) ^ (block << 1 | 1), self.plan.mix);
        // Fill a pool with POOL batches' worth of tokens, sort by length, cut into POOL equal parts.
        let mut pool = Vec::new();
        let mut tokens = 0;
        let mut cut = Rng::new(self.plan.seed ^ block);
        while tokens < POOL * self.plan.batch_tokens {
            let row = corpus.row();
            let mut encoded = bytes::conversation(row.system, &row.user, &row.answer);
            if row.kind == Kind::Fact && cut.chance(self.plan.cut) {
                encoded.0.truncate(encoded.1 + OPENING);
            }
            if encoded.0.len() <= self.plan.shape.max_position_embeddings {
                tokens += encoded.0.len();
                pool.push(encoded);
            }
        }
        pool.sort_by_key(|(ids, _)| ids.len());
        let mut bounds = vec![0];
        let mut sum = 0;
        for (index, (ids, _)) in pool.iter().enumerate() {
            sum += ids.len();
            if sum >= self.plan.batch_tokens && bounds.len() < POOL {
                bounds.push(index + 1);
                sum = 0;
            }
        }
        bounds.push(pool.len());
        // Visit the parts in a drawn order, else every block would run from short rows to long ones.
        let mut order: Vec<usize> = (0..POOL).collect();
        let mut rng = Rng::new(self.plan.seed ^ block.wrapping_mul(0x9e37_79b9));
        for index in (1..POOL).rev() {
            order.swap(index, rng.below(index + 1));
        }
        let part = order[(share % POOL as u64) as usize];
        let (from, to) = (bounds.get(part).copied(), bounds.get(part + 1).copied());
        match (from, to) {
            (Some(from), Some(to)) if from < to => Batch::new(&pool[from..to]),
            _ => Batch::new(&pool[..1]),
        }
    }

    /// One step; returns its loss.
    pub fn step(&mut self) -> Result<f64, TrainError> {
        let step = self.progress.step;
        let threads = self.plan.threads.max(1);
        let shares: Vec<Batch> =
            (0..threads as u64).map(|index| self.batch(step * threads as u64 + index)).collect();
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
    use super::*;

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
        let mut trainer = Trainer::new(plan());
        let losses: Vec<f64> = (0..50).map(|_| trainer.step().unwrap()).collect();
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&losses[..5]), mean(&losses[45..]));
        assert!(first > 5.0, "an untrained model cannot know better than ln 261 = 5.56: {first}");
        assert!(last < first - 1.5, "{first} fell to {last} only");
    }

    #[test]
    fn a_resumed_run_goes_on_as_if_it_had_not_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = dir.path().join("checkpoint");
        let mut whole = Trainer::new(plan());
        let mut first = Trainer::new(plan());
        for _ in 0..3 {
            whole.step().unwrap();
            first.step().unwrap();
        }
        first.save(&checkpoint).unwrap();
        let mut second = Trainer::resume(plan(), &checkpoint).unwrap();
        assert_eq!(second.progress.step, 3);
        for _ in 0..3 {
            let (expected, found) = (whole.step().unwrap(), second.step().unwrap());
            assert!((expected - found).abs() < 1e-5, "{expected} became {found}");
        }
    }

    #[test]
    fn a_missing_or_broken_checkpoint_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Trainer::resume(plan(), dir.path()).unwrap_err().to_string();
        assert!(error.contains("progress.json"), "{error}");
        std::fs::write(dir.path().join("progress.json"), "{").unwrap();
        let error = Trainer::resume(plan(), dir.path()).unwrap_err().to_string();
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
