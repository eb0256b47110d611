//! One step of the engine.
//!
//! A plan is made in this order, which is also the order of importance:
//!
//! 1. Jobs whose deadline has passed end. Blocks let go since the last plan are freed, and expired ones too.
//! 2. Every running job gets the block that its next position needs. If there is none left, someone gives theirs
//!    up and computes its tokens again later: first who does not want to run (allowance used up, reader slow;
//!    the longest so), then the running job of the worst rank. The best of all ranks never gives way, so
//!    something always gets done; and ranks do not change, so every job is the best one day.
//! 3. Decoding: each running job that lacks just one token gets it. No more jobs run than a step has tokens, so
//!    this always succeeds, and leaves something to
//! 4. the prefill of running jobs, best rank first.
//! 5. Admission: the first in line starts if all its tokens find blocks now. If they do not, nobody behind it is
//!    admitted either, or a long prompt would never see enough blocks free at once.
//!
//! Nobody gives way in 3 to 5 who already has a part in the plan.

use std::ops::Range;
use std::time::Instant;

use super::blocks::BlockId;
use super::{Ended, JobId, Over, Scheduler};

/// Blocks that admission leaves alone, as a part of the pool: running jobs are about to grow, and a job that is
/// admitted only to give way in the next step has cost a prefill for nothing.
const RESERVE: usize = 32;

/// What the engine is to do. Meant to be reused: the vectors keep their memory.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Blocks to overwrite before anything else.
    pub wipe: Vec<BlockId>,
    /// Input ids of all runs.
    pub ids: Vec<u32>,
    /// Block tables of all runs.
    pub tables: Vec<u32>,
    /// What to compute.
    pub runs: Vec<Run>,
    /// Jobs that are over since the last plan. Each is reported once.
    pub over: Vec<Ended>,
}

/// Consecutive positions of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Whose.
    pub job: JobId,
    /// The first position.
    pub from: u32,
    /// Its tokens in [`Plan::ids`], one per position.
    pub ids: Range<usize>,
    /// Its blocks in [`Plan::tables`], from position 0 to the last one of this run.
    pub table: Range<usize>,
    /// Whether a token is to be sampled from the logits of the last position.
    pub samples: bool,
    /// Tokens that are paid for and within the job's limit, the one to be sampled included.
    pub ahead: u32,
}

impl Plan {
    /// Whether there is nothing to do and nothing to say.
    pub fn is_empty(&self) -> bool {
        self.wipe.is_empty() && self.runs.is_empty() && self.over.is_empty()
    }

    fn clear(&mut self) {
        self.wipe.clear();
        self.ids.clear();
        self.tables.clear();
        self.runs.clear();
        self.over.clear();
    }
}

impl std::fmt::Debug for Plan {
    /// Without the ids: what an asker wrote has no place in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("Plan");
        out.field("wipe", &self.wipe).field("ids", &self.ids.len()).field("tables", &self.tables);
        out.field("runs", &self.runs).field("over", &self.over).finish()
    }
}

/// A run whose result is awaited.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flight {
    pub(super) job: JobId,
    pub(super) to: usize,
    pub(super) samples: bool,
}

/// Lists that only live for one plan, kept for their memory.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    decoding: Vec<JobId>,
    prefilling: Vec<JobId>,
}

impl Scheduler {
    /// Plans the next step. The engine wipes what is listed, runs the runs, and reports by
    /// [`sampled`](Self::sampled). If it is not reported, the step counts as failed and is planned again, but
    /// what is listed to be wiped must be wiped all the same.
    pub fn plan(&mut self, now: Instant, out: &mut Plan) {
        out.clear();
        self.flight.clear();
        while let Some(&(_, job)) = self.deadlines.first().filter(|(due, _)| *due <= now) {
            self.end(job, Some(Over::Deadline));
        }
        out.over.append(&mut self.over);
        for block in self.leaving.drain(..) {
            self.memory.release(block, now);
        }
        self.memory.expire(now);
        self.memory.wipe(&mut out.wipe);

        let mut scratch = std::mem::take(&mut self.scratch);
        self.grow(now, &mut scratch, &mut out.wipe);
        let mut budget = self.config.step_tokens as usize;
        for &id in scratch.decoding.iter().chain(&scratch.prefilling) {
            self.run(id, &mut budget, out);
        }
        let busy = scratch.decoding.len() + scratch.prefilling.len();
        self.scratch = scratch;
        self.admit(busy, now, &mut budget, out);
        self.memory.wipe(&mut out.wipe);
    }

    /// Sorts the running jobs, best rank first, and sees to their blocks.
    fn grow(&mut self, now: Instant, scratch: &mut Scratch, wipe: &mut Vec<BlockId>) {
        let block_tokens = self.config.block_tokens as usize;
        scratch.decoding.clear();
        scratch.prefilling.clear();
        let mut i = 0;
        while let Some(&rank) = self.running.get(i) {
            let Some(job) = self.jobs.get_mut(&rank.id) else { break };
            // A prefill got its blocks when it was admitted, a decoding job lacks at most one.
            let lacks = job.wants && job.table.len() * block_tokens < job.ids.len();
            if lacks && let Some(block) = self.memory.take(wipe) {
                job.table.push(block);
            } else if lacks {
                // Those before `i` have a better rank, so they go only if they do not want to run.
                let victim = self.idle().or_else(|| self.running.last().map(|rank| rank.id));
                let Some(victim) = victim else { break };
                self.preempt(victim, now);
                i = self.running.partition_point(|other| *other < rank);
                continue;
            }
            if job.wants {
                let lists = [&mut scratch.decoding, &mut scratch.prefilling];
                lists[usize::from(job.remaining() > 1)].push(rank.id);
            }
            i += 1;
        }
    }

    /// Admits jobs while there is budget to start them and room to finish their prefill.
    fn admit(&mut self, mut busy: usize, now: Instant, budget: &mut usize, out: &mut Plan) {
        while *budget > 0 {
            let Some(id) = self.line.first(now) else { return };
            if !self.make_room(id, busy, now) {
                return;
            }
            let block_tokens = self.config.block_tokens as usize;
            let Some(job) = self.jobs.get_mut(&id) else { return };
            let Some(claim) = job.claim() else { return };
            let reusable = job.keys.len().min((job.ids.len() - 1) / block_tokens);
            self.memory.reuse(&job.keys[..reusable], &mut job.table);
            job.published = job.table.len();
            job.computed = job.published * block_tokens;
            job.cached.get_or_insert(job.computed);
            let blocks = job.ids.len().div_ceil(block_tokens);
            while job.table.len() < blocks {
                let Some(block) = self.memory.take(&mut out.wipe) else { break };
                job.table.push(block);
            }
            job.running = true;
            self.line.serve(&claim, now);
            let place = self.running.partition_point(|other| *other < claim.rank);
            self.running.insert(place, claim.rank);
            busy += 1;
            self.run(id, budget, out);
        }
    }

    /// Whether a job that waits finds a place and its blocks. Those who do not want to run are sent away for it,
    /// but only if that can help.
    fn make_room(&mut self, id: JobId, busy: usize, now: Instant) -> bool {
        let block_tokens = self.config.block_tokens as usize;
        let reserve = busy.min(self.memory.len() / RESERVE);
        loop {
            let Some(job) = self.jobs.get(&id) else { return false };
            let reusable = job.keys.len().min((job.ids.len() - 1) / block_tokens);
            let (hits, kept) = self.memory.hits(&job.keys[..reusable]);
            // Blocks that are found but not held are counted among the available, and will not be.
            let needed = job.ids.len().div_ceil(block_tokens) - hits + kept + reserve;
            let place = self.running.len() < self.config.running;
            let available = self.memory.available();
            if place && needed <= available {
                return true;
            }
            let idle =
                self.running.iter().filter_map(|rank| self.jobs.get(&rank.id)).filter(|job| !job.wants);
            if needed > available + idle.map(|job| job.table.len()).sum::<usize>() {
                return false;
            }
            let Some(victim) = self.idle() else { return false };
            self.preempt(victim, now);
        }
    }

    /// Who among the running has not wanted to run for longest.
    fn idle(&self) -> Option<JobId> {
        let jobs = self.running.iter().filter_map(|rank| self.jobs.get(&rank.id).map(|job| (job, rank.id)));
        jobs.filter(|(job, _)| !job.wants).min_by_key(|(job, _)| job.rested).map(|(_, id)| id)
    }

    /// Sends a running job away. What it computed is kept for as long as nobody needs the memory.
    fn preempt(&mut self, id: JobId, now: Instant) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        // The end of a chain is of no use without its start, so it goes first.
        for block in job.table.drain(..).rev() {
            self.memory.release(block, now);
        }
        (job.computed, job.published, job.running) = (0, 0, false);
        if let Some(claim) = job.claim() {
            self.running.retain(|rank| *rank != claim.rank);
            if job.wants {
                self.line.join(claim);
            }
        }
        self.preempted = self.preempted.saturating_add(1);
    }

    /// Adds as much of a job to the plan as the budget allows.
    fn run(&mut self, id: JobId, budget: &mut usize, out: &mut Plan) {
        let block_tokens = self.config.block_tokens as usize;
        let Some(job) = self.jobs.get(&id) else { return };
        let covered = (job.table.len() * block_tokens).saturating_sub(job.computed);
        let tokens = job.remaining().min(*budget).min(covered);
        if tokens == 0 {
            return;
        }
        *budget -= tokens;
        let to = job.computed + tokens;
        let samples = to == job.ids.len();
        let (ids, tables) = (out.ids.len(), out.tables.len());
        out.ids.extend_from_slice(&job.ids[job.computed..to]);
        out.tables.extend(job.table[..to.div_ceil(block_tokens)].iter().map(|block| block.0));
        out.runs.push(Run {
            job: id,
            // A sequence fits the pool, whose positions are counted in 32 bits.
            from: u32::try_from(job.computed).unwrap_or(u32::MAX),
            ids: ids..out.ids.len(),
            table: tables..out.tables.len(),
            samples,
            ahead: job.left.min(job.allowance.saturating_sub(job.released)),
        });
        self.flight.push(Flight { job: id, to, samples });
        self.line.charge(job.terms.asker, job.terms.priority, tokens);
    }
}
