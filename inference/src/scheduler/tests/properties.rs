//! Whatever happens, in whatever order.

use proptest::prelude::*;

use super::super::*;
use super::world::{Fault, World, alone};

#[derive(Debug, Clone)]
enum Input {
    Submit {
        asker: u64,
        shared: bool,
        priority: u8,
        deadline: Option<u64>,
        sequence: Sequence,
        stop: Option<u32>,
    },
    Prepare(u64),
    Allow(u64, u32),
    Cancel(u64),
    Pause(u64, bool),
    Steps(u8, Fault),
    /// Long enough for cached prefixes to expire, or jobs to have been paid.
    Pass(u64),
}

/// Prompts begin alike, so that prefixes are found again.
fn sequence() -> impl Strategy<Value = Sequence> {
    let prompt = (1usize..40, 0u32..3, 0usize..8).prop_map(|(len, kind, own)| {
        let own = own.min(len - 1);
        (0..len).map(|i| if i + own < len { i as u32 } else { 100 + kind }).collect::<Vec<u32>>()
    });
    (prompt, prop::collection::vec(0u32..3, 0..4), 0u32..30, prop::bool::weighted(0.05))
        .prop_map(|(prompt, prefix, limit, at_end)| Sequence { prompt, prefix, limit, at_end })
}

fn input() -> impl Strategy<Value = Input> {
    let terms = (0u64..4, any::<bool>(), 0u8..3, prop::option::weighted(0.1, 0u64..2000));
    let submit = (terms, sequence(), prop::option::weighted(0.2, 0u32..50));
    let fault = prop_oneof![8 => Just(Fault::None), 1 => Just(Fault::Step), 1 => Just(Fault::Result)];
    prop_oneof![
        4 => submit.prop_map(|((asker, shared, priority, deadline), sequence, stop)| {
            Input::Submit { asker, shared, priority, deadline, sequence, stop }
        }),
        4 => (0u64..40).prop_map(Input::Prepare),
        6 => (0u64..40, 0u32..40).prop_map(|(job, total)| Input::Allow(job, total)),
        1 => (0u64..40).prop_map(Input::Cancel),
        2 => (0u64..40, any::<bool>()).prop_map(|(job, paused)| Input::Pause(job, paused)),
        6 => (1u8..8, fault).prop_map(|(steps, fault)| Input::Steps(steps, fault)),
        1 => (0u64..1500).prop_map(Input::Pass),
    ]
}

fn config() -> impl Strategy<Value = Config> {
    (1u32..6, 1u32..40, 1u32..50, 1usize..8, 0usize..8, 0u64..3).prop_map(
        |(block_tokens, blocks, step_tokens, running, queue, keep)| Config {
            block_tokens,
            blocks,
            step_tokens,
            running,
            queue,
            age: Duration::from_millis(100),
            quantum: 16,
            keep: Duration::from_millis(500 * keep),
        },
    )
}

fn apply(world: &mut World, input: Input) {
    let job = |id: u64, world: &World| JobId(id % (world.jobs.len() as u64).max(1));
    match input {
        Input::Submit { asker, shared, priority, deadline, sequence, stop } => {
            let salt = if shared { Salt::SHARED } else { Salt([asker as u8; 32]) };
            let deadline = deadline.map(|ms| world.now + Duration::from_millis(ms));
            let alive = world.alive();
            match world.submit(Terms { asker, salt, priority, deadline }, sequence) {
                Ok(id) => world.jobs.get_mut(&id).unwrap().stop = stop,
                // A job that was cancelled, or has its last token, is reported by the next plan only.
                Err(busy) => assert!(alive >= busy.limit),
            }
        }
        Input::Prepare(id) => {
            let id = job(id, world);
            let refused = world.prepare(id).is_err();
            let Some(told) = world.jobs.get(&id) else { return };
            let needs = told.sequence.prompt.len() as u64 + u64::from(told.sequence.limit) - 1;
            assert!(!refused || needs > u64::from(world.scheduler.capacity()));
        }
        Input::Allow(id, total) => world.allow(job(id, world), total),
        Input::Cancel(id) => world.cancel(job(id, world)),
        Input::Pause(id, paused) => world.pause(job(id, world), paused),
        Input::Steps(steps, fault) => (0..steps).for_each(|_| world.step(fault)),
        Input::Pass(ms) => world.now += Duration::from_millis(ms),
    }
    world.check();
}

proptest! {
    /// The checks are in [`World::step`]: who reads what, who waits for whom, what was paid, what is left.
    #[test]
    fn every_answer_is_what_it_would_be_alone_and_no_block_is_lost(
        config in config(),
        inputs in prop::collection::vec(input(), 1..120),
    ) {
        let mut world = World::new(config);
        for input in inputs {
            apply(&mut world, input);
        }
        // With everything paid for, everything ends in as many steps as there is work for the best of all ranks.
        let ids: Vec<JobId> = world.jobs.keys().copied().collect();
        for &id in &ids {
            let _ = world.prepare(id);
            world.pause(id, false);
            world.allow(id, u32::MAX);
        }
        let waiting = world.jobs.values().filter(|job| job.over.is_none());
        let work: usize = waiting.map(|job| job.sequence.prompt.len() + job.sequence.limit as usize + 10).sum();
        world.run_out(10 + work * (config.running + 1));
        for job in world.jobs.values() {
            let expected = alone(&job.sequence, job.stop);
            prop_assert!(expected.starts_with(&job.output));
            prop_assert!(job.cancelled || job.over != Some(Over::End) || job.output == expected);
        }
        // All memory is back, and the cached prefixes go when their time is up.
        world.step(Fault::None);
        let load = world.scheduler.load();
        prop_assert_eq!((load.active, load.queued), (0, 0));
        prop_assert_eq!(load.free_blocks + load.cached_blocks, config.blocks as usize);
        world.now += config.keep;
        world.step(Fault::None);
        prop_assert_eq!(world.scheduler.load().free_blocks, config.blocks as usize);
        prop_assert_eq!(world.scheduler.next_timer(), None);
    }

    #[test]
    fn the_same_calls_give_the_same_plans(
        config in config(),
        inputs in prop::collection::vec(input(), 1..60),
    ) {
        let (mut one, mut other) = (World::new(config), World::new(config));
        other.now = one.now;
        other.scheduler = Scheduler::new(config, one.now);
        for input in inputs {
            apply(&mut one, input.clone());
            apply(&mut other, input);
            prop_assert_eq!(&one.plan, &other.plan);
        }
    }

    /// A job of the lowest class against streams of the highest, of others or of its own asker.
    #[test]
    fn nobody_starves_beside_a_stream_of_urgent_jobs(
        config in config(),
        own in any::<bool>(),
        fresh in any::<bool>(),
        length in 1u32..12,
    ) {
        let config = Config { blocks: config.blocks.max(12), block_tokens: config.block_tokens.max(2),
            queue: config.queue.max(2), ..config };
        let mut world = World::new(config);
        let sequence = |limit| Sequence { prompt: vec![7; 5], prefix: vec![], limit, at_end: false };
        let terms = |asker, priority| Terms { asker, salt: Salt([asker as u8; 32]), priority, deadline: None };
        let mut asker = 1;
        let mut stream = |world: &mut World| {
            while world.alive() < config.running + config.queue - 1 {
                asker += u64::from(fresh);
                let id = world.submit(terms(if own { 0 } else { asker }, 3), sequence(length)).unwrap();
                world.prepare(id).unwrap();
                world.allow(id, u32::MAX);
            }
        };
        for _ in 0..10 {
            stream(&mut world);
            world.step(Fault::None);
        }
        let low = world.start(terms(0, 0), sequence(10));
        let places = config.running + config.queue;
        // Four classes at ten steps each, and then everybody who is ahead.
        for _ in 0..100 + 4 * places * 30 {
            stream(&mut world);
            world.step(Fault::None);
            if world.jobs[&low].over.is_some() {
                break;
            }
        }
        prop_assert!(world.jobs[&low].over.is_some(), "{:?}", world.jobs[&low]);
    }
}
