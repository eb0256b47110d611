//! Keys and values of all sequences, and the steps that compute them.

use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::Shared;
use super::model::Pools;
use crate::decoder::Spot;
use crate::engine::{EngineError, Executor, Logits, Resources};
use crate::scheduler::{BlockId, Plan, Run};

pub(super) struct BurnExecutor {
    shared: Arc<Shared>,
    pools: Pools,
    /// Blocks that hold something.
    touched: Vec<bool>,
    /// The threads that compute; none takes those of the whole process.
    threads: Option<ThreadPool>,
}

impl BurnExecutor {
    pub(super) fn new(shared: Arc<Shared>, resources: Resources) -> Result<Self, EngineError> {
        let Resources { blocks, threads } = resources;
        let threads = match threads {
            0 => None,
            threads => {
                let builder = ThreadPoolBuilder::new().num_threads(threads);
                let builder = builder.thread_name(|i| format!("kernel-{i}"));
                Some(builder.build().map_err(|e| EngineError::Backend(format!("no threads: {e}")))?)
            }
        };
        let pools = shared.model.pools(blocks).map_err(EngineError::Backend)?;
        Ok(Self { shared, pools, touched: vec![false; blocks as usize], threads })
    }
}

impl Executor for BurnExecutor {
    fn wipe(&mut self, blocks: &[BlockId]) {
        let touched = |&BlockId(block): &BlockId| {
            let touched = self.touched.get_mut(block as usize)?;
            std::mem::take(touched).then_some(block)
        };
        let blocks: Vec<u32> = blocks.iter().filter_map(touched).collect();
        if !blocks.is_empty() {
            self.pools.wipe(&blocks);
        }
    }

    fn run(&mut self, plan: &Plan, runs: &[Run]) -> Result<Logits, EngineError> {
        let rows = runs.iter().map(|run| run.ids.len()).sum();
        let (mut ids, mut spots) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        let mut sampled = Vec::with_capacity(runs.len());
        for run in runs {
            let table = &plan.tables[run.table.clone()];
            for &block in table {
                if let Some(touched) = self.touched.get_mut(block as usize) {
                    *touched = true;
                }
            }
            for (i, &id) in plan.ids[run.ids.clone()].iter().enumerate() {
                ids.push(id);
                spots.push(Spot { position: run.from as usize + i, table });
            }
            if run.samples {
                sampled.push(ids.len() - 1);
            }
        }
        let Self { shared, pools, threads, .. } = self;
        let logits = shared.model.step(&ids, &spots, &sampled, pools, threads.as_ref());
        Ok(Logits::new(logits.map_err(EngineError::Backend)?, shared.frontend.vocab()))
    }
}

impl Drop for BurnExecutor {
    fn drop(&mut self) {
        let touched = (0u32..).zip(&self.touched).filter(|(_, touched)| **touched);
        self.pools.wipe(&touched.map(|(block, _)| block).collect::<Vec<_>>());
    }
}
