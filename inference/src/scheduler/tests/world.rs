//! An engine that can be checked, and askers that keep books.
//!
//! The engine's next token is a hash of all ids before it. Its key/value memory remembers for every slot whose
//! salt and which ids were written there, so a run that reads a wrong, foreign or unwiped block is found out.

use super::super::*;

/// What a slot of a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    salt: Salt,
    /// Hash of all ids up to here.
    chain: u64,
}

/// What an asker knows of its job.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) terms: Terms,
    pub(super) sequence: Sequence,
    /// A token that the engine takes for a stop string.
    pub(super) stop: Option<u32>,
    pub(super) priced: bool,
    pub(super) paid: u32,
    pub(super) paused: bool,
    pub(super) cancelled: bool,
    pub(super) output: Vec<u32>,
    pub(super) over: Option<Over>,
    /// Steps in which it was computed.
    pub(super) runs: usize,
    /// Hashes of its ids.
    chain: Vec<u64>,
}

pub(super) struct World {
    pub(super) scheduler: Scheduler,
    pub(super) config: Config,
    pub(super) now: Instant,
    pub(super) plan: Plan,
    pub(super) jobs: BTreeMap<JobId, Told>,
    memory: Vec<Vec<Option<Slot>>>,
}

/// What goes wrong in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The engine wipes and then fails.
    Step,
    /// One result is missing.
    Result,
}

fn link(chain: u64, id: u32) -> u64 {
    let mixed = (chain ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

fn next(chain: u64) -> Sampled {
    match (chain >> 7) % 23 {
        0 => Sampled::End,
        _ => Sampled::Token((chain >> 16) as u32 % 50),
    }
}

/// What a job says when it is alone.
pub(super) fn alone(sequence: &Sequence, stop: Option<u32>) -> Vec<u32> {
    let mut chain = sequence.prompt.iter().chain(&sequence.prefix).fold(1, |chain, &id| link(chain, id));
    let mut output = Vec::new();
    let left = (sequence.limit as usize).saturating_sub(sequence.prefix.len());
    while output.len() < left && !sequence.at_end {
        let Sampled::Token(token) = next(chain) else { break };
        chain = link(chain, token);
        output.push(token);
        if stop == Some(token) {
            break;
        }
    }
    output
}

impl World {
    pub(super) fn new(config: Config) -> Self {
        #[allow(clippy::disallowed_methods)] // Any instant will do: the tests move it themselves.
        let now = Instant::now();
        let memory = vec![vec![None; config.block_tokens as usize]; config.blocks as usize];
        let scheduler = Scheduler::new(config, now);
        Self { scheduler, config, now, plan: Plan::default(), jobs: BTreeMap::new(), memory }
    }

    pub(super) fn submit(&mut self, terms: Terms, sequence: Sequence) -> Result<JobId, Busy> {
        let id = JobId(self.jobs.len() as u64);
        let displaced = self.scheduler.submit(id, terms, self.now)?;
        if let Some(displaced) = displaced {
            let job = self.jobs.get_mut(&displaced).unwrap();
            assert!(job.priced && job.paid == 0 && job.over.is_none());
            job.over = Some(Over::Cancelled);
        }
        let told = Told {
            terms,
            sequence,
            stop: None,
            priced: false,
            paid: 0,
            paused: false,
            cancelled: false,
            output: Vec::new(),
            over: None,
            runs: 0,
            chain: Vec::new(),
        };
        self.jobs.insert(id, told);
        Ok(id)
    }

    pub(super) fn prepare(&mut self, id: JobId) -> Result<(), Refused> {
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        if job.priced {
            return Ok(());
        }
        job.priced = true;
        for &id in job.sequence.prompt.iter().chain(&job.sequence.prefix) {
            job.chain.push(link(*job.chain.last().unwrap_or(&1), id));
        }
        let prepared = self.scheduler.prepared(id, job.sequence.clone(), self.now);
        if prepared.is_err() {
            job.over = job.over.or(Some(Over::Cancelled));
        }
        prepared
    }

    /// Submits, prepares and pays for a job.
    pub(super) fn start(&mut self, terms: Terms, sequence: Sequence) -> JobId {
        let id = self.submit(terms, sequence).unwrap();
        self.prepare(id).unwrap();
        self.allow(id, u32::MAX);
        id
    }

    pub(super) fn allow(&mut self, id: JobId, total: u32) {
        self.scheduler.allow(id, total, self.now);
        if let Some(job) = self.jobs.get_mut(&id) {
            job.paid = job.paid.max(total);
        }
    }

    pub(super) fn pause(&mut self, id: JobId, paused: bool) {
        match paused {
            true => self.scheduler.pause(id),
            false => self.scheduler.resume(id, self.now),
        }
        if let Some(job) = self.jobs.get_mut(&id) {
            job.paused = paused;
        }
    }

    pub(super) fn cancel(&mut self, id: JobId) {
        self.scheduler.cancel(id);
        if let Some(job) = self.jobs.get_mut(&id) {
            job.cancelled = true;
        }
    }

    pub(super) fn alive(&self) -> usize {
        self.jobs.values().filter(|job| job.over.is_none()).count()
    }

    /// Every block has exactly one state, and what holds it is known.
    pub(super) fn check(&self) {
        let s = &self.scheduler;
        s.memory.check(s.jobs.values().flat_map(|job| &job.table).chain(&s.leaving));
        assert!(s.running.len() <= self.config.running.min(self.config.step_tokens as usize));
        assert!(s.running.is_sorted());
        let running = s.jobs.values().filter(|job| job.running).count();
        assert_eq!(running, s.running.len());
        assert!(s.jobs.values().all(|job| job.running || job.table.is_empty()));
    }

    /// Plans a step, computes it and checks both. Ten milliseconds pass.
    pub(super) fn step(&mut self, fault: Fault) {
        let mut plan = std::mem::take(&mut self.plan);
        self.scheduler.plan(self.now, &mut plan);
        self.check();
        let tokens = self.config.block_tokens as usize;
        let jobs = self.scheduler.jobs.values().filter(|job| job.running && job.wants);
        for job in jobs {
            assert!(job.table.len() * tokens >= job.ids.len(), "admitted without room for all its tokens");
        }
        for ended in &plan.over {
            let job = self.jobs.get_mut(&ended.job).unwrap();
            assert_eq!(job.over, None, "reported twice");
            match ended.over {
                Over::Cancelled => assert!(job.cancelled),
                Over::Deadline => assert!(job.terms.deadline.is_some_and(|due| due <= self.now)),
                Over::End | Over::Length if !job.cancelled => {
                    assert_eq!(job.output, alone(&job.sequence, job.stop));
                }
                Over::End | Over::Length => {}
            }
            job.over = Some(ended.over);
        }
        self.check_plan(&plan);
        for block in &plan.wipe {
            self.memory[block.index()].fill(None);
        }
        if fault != Fault::Step {
            self.compute(&plan, fault);
        }
        self.check();
        self.plan = plan;
        self.now += Duration::from_millis(10);
    }

    fn check_plan(&self, plan: &Plan) {
        assert!(plan.ids.len() <= self.config.step_tokens as usize, "over budget");
        let mut wiped = plan.wipe.clone();
        wiped.sort();
        wiped.dedup();
        assert_eq!(wiped.len(), plan.wipe.len(), "a block is wiped twice");
        let mut seen = BTreeSet::new();
        for run in &plan.runs {
            let job = &self.jobs[&run.job];
            assert!(seen.insert(run.job), "two runs of one job");
            assert!(job.over.is_none() && !job.cancelled && !job.paused, "{job:?} runs");
            assert!(job.output.len() < job.paid as usize, "computed without pay");
            let to = run.from as usize + run.ids.len();
            assert_eq!(run.samples, to == job.chain.len());
            assert_eq!(run.table.len(), to.div_ceil(self.config.block_tokens as usize));
        }
        // If anybody may run, somebody does.
        let may_run = |job: &&Told| {
            job.priced
                && job.over.is_none()
                && !job.cancelled
                && !job.paused
                && job.output.len() < job.paid as usize
        };
        assert_eq!(self.jobs.values().any(|job| may_run(&job)), !plan.runs.is_empty());
    }

    fn compute(&mut self, plan: &Plan, fault: Fault) {
        let tokens = self.config.block_tokens as usize;
        let slot = |run: &Run, position: usize| {
            (plan.tables[run.table.clone()][position / tokens] as usize, position % tokens)
        };
        // No run reads what another one of the same step writes.
        for run in &plan.runs {
            let job = &self.jobs[&run.job];
            for position in 0..run.from as usize {
                let (block, offset) = slot(run, position);
                let expected = Slot { salt: job.terms.salt, chain: job.chain[position] };
                assert_eq!(self.memory[block][offset], Some(expected), "{run:?} reads position {position}");
            }
        }
        for run in &plan.runs {
            let job = &self.jobs[&run.job];
            for (i, &id) in plan.ids[run.ids.clone()].iter().enumerate() {
                let position = run.from as usize + i;
                let before = position.checked_sub(1).map_or(1, |before| job.chain[before]);
                let chain = link(before, id);
                assert_eq!(chain, job.chain[position], "wrong input");
                let (block, offset) = slot(run, position);
                let value = Some(Slot { salt: job.terms.salt, chain });
                let old = std::mem::replace(&mut self.memory[block][offset], value);
                assert!(old.is_none() || old == value, "{run:?} writes where another's values still are");
            }
        }
        let mut results = Vec::new();
        for run in &plan.runs {
            let job = self.jobs.get_mut(&run.job).unwrap();
            job.runs += 1;
            if run.samples {
                results.push((run.job, next(*job.chain.last().unwrap())));
            }
        }
        if fault == Fault::Result {
            results.pop();
        }
        self.scheduler.sampled(&results);
        for (id, sampled) in results {
            let job = self.jobs.get_mut(&id).unwrap();
            let Sampled::Token(token) = sampled else { continue };
            job.chain.push(link(*job.chain.last().unwrap(), token));
            job.output.push(token);
            let full = job.output.len() + job.sequence.prefix.len() >= job.sequence.limit as usize;
            if job.stop == Some(token) && !full {
                assert_eq!(job.output, alone(&job.sequence, job.stop));
                job.over = Some(Over::End);
                self.scheduler.finish(id);
            }
        }
    }

    /// Steps until nobody is left, at most so often.
    pub(super) fn run_out(&mut self, most: usize) -> usize {
        for step in 0..most {
            if self.alive() == 0 {
                return step;
            }
            self.step(Fault::None);
        }
        assert_eq!(self.alive(), 0, "not done after {most} steps: {:?}", self.scheduler);
        most
    }
}
