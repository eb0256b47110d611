//! What the scheduler does, by example; `properties` says what it always does.

mod properties;
mod world;

use super::*;
use world::{Fault, World};

const PUBLIC: Terms = Terms { asker: 0, salt: Salt::SHARED, priority: 0, deadline: None };

fn config() -> Config {
    Config { block_tokens: 4, step_tokens: 16, ..Config::new(64, 4, 8) }
}

fn of(asker: u64) -> Terms {
    Terms { asker, salt: Salt([asker as u8; 32]), ..PUBLIC }
}

/// A prompt of so many tokens that no other job's begins like, and an answer that does not end by itself.
fn sequence(kind: u32, prompt: usize, limit: u32) -> Sequence {
    (0..)
        .map(|variant| {
            let ids = [kind * 1000 + variant].into_iter().chain(100..).take(prompt);
            Sequence { prompt: ids.collect(), prefix: Vec::new(), limit, at_end: false }
        })
        .find(|sequence| world::alone(sequence, None).len() == limit as usize)
        .unwrap()
}

fn start(world: &mut World, jobs: u64, job: impl Fn(u64) -> (Terms, Sequence)) {
    for (terms, sequence) in (0..jobs).map(job) {
        world.start(terms, sequence);
    }
}

/// Who runs how many tokens.
fn runs(world: &World) -> Vec<(u64, usize)> {
    world.plan.runs.iter().map(|run| (run.job.0, run.ids.len())).collect()
}

#[test]
fn a_long_prompt_is_read_in_what_answers_leave_of_the_budget() {
    let mut world = World::new(config());
    world.start(of(1), sequence(1, 3, 9));
    world.step(Fault::None);
    assert_eq!(runs(&world), [(0, 3)]);
    world.start(of(2), sequence(2, 40, 9));
    world.step(Fault::None);
    assert_eq!(runs(&world), [(0, 1), (1, 15)], "a token for who answers, the rest for who begins");
    assert!(!world.plan.runs[1].samples);
    world.step(Fault::None);
    world.step(Fault::None);
    assert_eq!(runs(&world), [(0, 1), (1, 10)]);
    assert!(world.plan.runs[1].samples, "the prompt is complete");
    world.step(Fault::None);
    assert_eq!(runs(&world), [(0, 1), (1, 1)]);
}

#[test]
fn nothing_is_computed_that_is_not_paid_for() {
    let mut world = World::new(config());
    let id = world.submit(of(1), sequence(1, 3, 9)).unwrap();
    world.prepare(id).unwrap();
    world.step(Fault::None);
    assert!(world.plan.is_empty(), "not even the prompt is read");
    world.allow(id, 2);
    (0..5).for_each(|_| world.step(Fault::None));
    assert_eq!(world.jobs[&id].output.len(), 2);
    assert!(world.plan.is_empty());
    assert_eq!(world.scheduler.load().active, 1, "its blocks wait with it");
    world.allow(id, 9);
    world.step(Fault::None);
    assert_eq!(runs(&world), [(0, 1)], "it goes on where it was");
    world.run_out(10);
    assert_eq!(world.jobs[&id].over, Some(Over::Length));
}

#[test]
fn who_waits_for_money_gives_way_first_and_is_computed_again_once_paid() {
    let mut world = World::new(Config { blocks: 6, keep: Duration::ZERO, ..config() });
    let idle = world.submit(of(1), sequence(1, 12, 9)).unwrap();
    world.prepare(idle).unwrap();
    world.allow(idle, 2);
    (0..3).for_each(|_| world.step(Fault::None));
    assert_eq!(world.scheduler.load().free_blocks, 2);
    let paid = world.start(of(2), sequence(2, 12, 3));
    world.step(Fault::None);
    assert_eq!(runs(&world), [(paid.0, 12)]);
    assert_eq!(world.plan.wipe.len(), 4, "nobody sees what the first one computed");
    world.allow(idle, 9);
    world.run_out(20);
    assert_eq!(world.jobs[&idle].over, Some(Over::Length));
    assert_eq!(world.scheduler.load().preempted, 1);
}

#[test]
fn a_slow_reader_stops_its_job_and_no_other() {
    let mut world = World::new(config());
    let slow = world.start(of(1), sequence(1, 3, 9));
    let other = world.start(of(2), sequence(2, 3, 9));
    world.step(Fault::None);
    world.pause(slow, true);
    world.step(Fault::None);
    assert_eq!(runs(&world), [(other.0, 1)]);
    world.pause(slow, false);
    world.step(Fault::None);
    assert_eq!(runs(&world), [(slow.0, 1), (other.0, 1)]);
}

#[test]
fn a_prefix_is_found_again_by_its_asker_alone() {
    let mut world = World::new(config());
    let prompt = sequence(1, 13, 1);
    let first = world.start(of(1), prompt.clone());
    world.run_out(5);
    assert_eq!(world.jobs[&first].over, Some(Over::Length));
    assert_eq!(world.scheduler.load().cached_blocks, 3);
    let again = world.start(of(1), prompt.clone());
    let stranger = world.start(of(2), prompt.clone());
    world.step(Fault::None);
    assert_eq!(runs(&world), [(stranger.0, 13), (again.0, 1)]);
    assert_eq!(world.plan.over, []);
    world.step(Fault::None);
    let cached: Vec<_> = world.plan.over.iter().map(|ended| (ended.job, ended.cached)).collect();
    assert_eq!(cached, [(stranger, 0), (again, 12)]);
}

#[test]
fn who_opts_in_shares_a_prefix_while_it_is_in_use() {
    let mut world = World::new(config());
    world.start(Terms { asker: 1, ..PUBLIC }, sequence(1, 13, 9));
    world.step(Fault::None);
    let free = world.scheduler.load().free_blocks;
    let other = world.start(Terms { asker: 2, ..PUBLIC }, sequence(1, 13, 9));
    world.step(Fault::None);
    assert_eq!(world.scheduler.cached_tokens(other), Some(12));
    assert_eq!(world.scheduler.load().free_blocks, free - 1, "three blocks are held by both");
    world.run_out(20);
}

#[test]
fn a_prompt_that_is_known_entirely_is_computed_from_its_last_block() {
    let mut world = World::new(config());
    world.start(of(1), sequence(1, 12, 2));
    world.run_out(5);
    let again = world.start(of(1), sequence(1, 12, 2));
    world.step(Fault::None);
    assert_eq!(runs(&world), [(again.0, 4)], "there is no token without logits");
}

#[test]
fn a_cached_prefix_expires_and_is_overwritten() {
    let mut world = World::new(config());
    world.start(of(1), sequence(1, 13, 1));
    world.run_out(5);
    let due = world.scheduler.next_timer().unwrap();
    world.now = due;
    world.step(Fault::None);
    assert_eq!(world.plan.wipe.len(), 3);
    assert_eq!(world.scheduler.load().cached_blocks, 0);
    assert_eq!(world.scheduler.next_timer(), None);
}

#[test]
fn a_cancelled_job_is_over_with_the_next_plan() {
    let mut world = World::new(config());
    let id = world.start(of(1), sequence(1, 40, 9));
    world.step(Fault::None);
    world.cancel(id);
    world.step(Fault::None);
    assert_eq!(world.plan.over, [Ended { job: id, over: Over::Cancelled, cached: 0 }]);
    assert!(world.plan.runs.is_empty());
    assert_eq!(world.plan.wipe.len() + world.scheduler.load().cached_blocks, 10);
}

#[test]
fn a_deadline_ends_a_job_wherever_it_is() {
    let mut world = World::new(config());
    let due = world.now + Duration::from_secs(1);
    let terms = |i| Terms { deadline: Some(due), ..of(i) };
    let ids: Vec<JobId> = (0..3).map(|i| world.submit(terms(i), sequence(1, 3, 9)).unwrap()).collect();
    ids[1..].iter().for_each(|&id| world.prepare(id).unwrap());
    world.allow(ids[2], 1);
    world.step(Fault::None);
    assert_eq!(world.scheduler.next_timer(), Some(due));
    world.now = due;
    world.step(Fault::None);
    assert!(ids.iter().all(|id| world.jobs[id].over == Some(Over::Deadline)));
}

/// The order in which jobs get the only place there is.
fn order(world: &mut World) -> Vec<u64> {
    let mut order = Vec::new();
    while world.alive() > 0 {
        world.step(Fault::None);
        let run = world.plan.runs.first().map(|run| run.job.0);
        order.extend(run.filter(|id| !order.contains(id)));
    }
    order
}

fn one_place() -> World {
    World::new(Config { running: 1, queue: 20, quantum: 1, ..config() })
}

#[test]
fn askers_take_turns_however_many_jobs_each_has() {
    let mut world = one_place();
    start(&mut world, 3, |_| (of(1), sequence(1, 5, 4)));
    start(&mut world, 3, |_| (of(2), sequence(2, 5, 4)));
    assert_eq!(order(&mut world), [0, 3, 1, 4, 2, 5]);
}

#[test]
fn an_asker_that_is_served_does_not_grow_more_urgent_by_the_length_of_its_queue() {
    let mut world = one_place();
    start(&mut world, 5, |_| (of(1), sequence(1, 5, 4)));
    while world.jobs[&JobId(2)].runs == 0 {
        world.now += world.config.age;
        world.step(Fault::None);
    }
    let single = world.start(of(2), sequence(2, 5, 4));
    assert_eq!(order(&mut world), [2, single.0, 3, 4]);
}

#[test]
fn an_asker_that_comes_late_gets_its_turn_and_no_credit() {
    let mut world = World::new(Config { keep: Duration::ZERO, ..one_place().config });
    start(&mut world, 6, |_| (of(1), sequence(1, 5, 4)));
    while world.jobs[&JobId(2)].runs == 0 {
        world.step(Fault::None);
    }
    start(&mut world, 3, |_| (of(2), sequence(2, 5, 4)));
    assert_eq!(order(&mut world), [2, 6, 3, 7, 4, 8, 5]);
}

#[test]
fn urgent_jobs_go_first_and_earlier_deadlines_among_them() {
    let mut world = one_place();
    let due = |world: &World, seconds| Some(world.now + Duration::from_secs(seconds));
    world.start(of(1), sequence(1, 5, 4));
    world.start(Terms { priority: 1, deadline: due(&world, 90), ..of(2) }, sequence(2, 5, 4));
    world.start(Terms { priority: 1, deadline: due(&world, 60), ..of(3) }, sequence(3, 5, 4));
    world.start(Terms { priority: 2, ..of(4) }, sequence(4, 5, 4));
    assert_eq!(order(&mut world), [3, 2, 1, 0]);
}

#[test]
fn waiting_makes_urgent() {
    let mut world = one_place();
    let running = world.start(of(1), sequence(1, 5, 4));
    world.step(Fault::None);
    let patient = world.start(of(2), sequence(2, 5, 4));
    world.now += world.config.age * 3;
    let urgent = world.start(Terms { priority: 2, ..of(3) }, sequence(3, 5, 4));
    assert_eq!(order(&mut world), [running.0, patient.0, urgent.0]);
}

#[test]
fn no_more_jobs_run_than_a_step_has_tokens() {
    let mut world = World::new(Config { step_tokens: 3, ..config() });
    start(&mut world, 4, |i| (of(i), sequence(1, 2, 9)));
    world.step(Fault::None);
    assert_eq!(runs(&world), [(0, 2), (1, 1)]);
    world.step(Fault::None);
    assert_eq!(runs(&world), [(0, 1), (1, 1), (2, 1)]);
    world.step(Fault::None);
    assert_eq!(runs(&world), [(0, 1), (1, 1), (2, 1)], "who answers leaves a token for who begins");
    assert_eq!((world.scheduler.load().active, world.scheduler.load().queued), (3, 1));
    world.run_out(40);
}

#[test]
fn what_can_never_fit_is_refused_with_numbers() {
    let mut world = World::new(Config { blocks: 3, ..config() });
    let fits = world.submit(of(1), sequence(1, 4, 9)).unwrap();
    assert_eq!(world.prepare(fits), Ok(()), "the last token's values are never computed");
    let long = world.submit(of(1), sequence(1, 5, 9)).unwrap();
    let refused = world.prepare(long).unwrap_err();
    assert_eq!(refused, Refused::TooLong { tokens: 13, capacity: 12 });
    let why = "prompt and answer may take 13 tokens, but this worker's cache holds 12; lower `max_tokens` or \
               shorten the conversation";
    assert_eq!(refused.to_string(), why);
    world.allow(fits, 9);
    world.run_out(20);
}

#[test]
fn an_answer_that_is_complete_needs_no_place_and_no_pay() {
    let mut world = World::new(config());
    let id = world.submit(of(1), Sequence { at_end: true, ..sequence(1, 3, 9) }).unwrap();
    world.prepare(id).unwrap();
    let full = world.submit(of(1), Sequence { prefix: vec![1, 2], limit: 2, ..sequence(1, 3, 9) }).unwrap();
    world.prepare(full).unwrap();
    world.step(Fault::None);
    let over: Vec<_> = world.plan.over.iter().map(|ended| (ended.job, ended.over)).collect();
    assert_eq!(over, [(id, Over::End), (full, Over::Length)]);
}

#[test]
fn a_full_queue_gives_the_place_of_who_did_not_pay_to_who_may() {
    let mut world = World::new(Config { running: 1, queue: 2, ..config() });
    let submit = |world: &mut World| world.submit(of(1), sequence(1, 3, 9));
    for _ in 0..3 {
        submit(&mut world).unwrap();
    }
    world.now += GRACE;
    assert_eq!(submit(&mut world), Err(Busy { limit: 3 }), "none has a price yet");
    (0..3).for_each(|id| world.prepare(JobId(id)).unwrap());
    world.allow(JobId(0), 5);
    world.now += GRACE / 2;
    assert_eq!(submit(&mut world), Err(Busy { limit: 3 }), "there was no time to pay");
    world.now += GRACE / 2;
    submit(&mut world).unwrap();
    assert!(world.jobs[&JobId(1)].over.is_some(), "the oldest that did not pay");
    submit(&mut world).unwrap();
    assert!(world.jobs[&JobId(2)].over.is_some());
    assert_eq!(submit(&mut world), Err(Busy { limit: 3 }));
    assert_eq!(world.scheduler.load().queued, 3);
}

#[test]
fn nothing_an_asker_wrote_is_printed() {
    let mut world = World::new(config());
    let mut secret = sequence(1, 3, 9);
    secret.prompt[0] = 31_337;
    let shown = format!("{secret:?} {:?}", of(42));
    world.start(of(42), secret);
    world.step(Fault::None);
    let shown = format!("{shown} {:?} {:?}", world.scheduler, world.plan);
    assert!(!shown.contains("31337") && !shown.contains("42, 42"), "{shown}");
}

/// `cargo test --release -- --ignored --nocapture what_a_step_costs`
#[test]
#[ignore = "prints timings"]
#[allow(clippy::disallowed_methods, clippy::print_stdout)] // A measurement.
fn what_a_step_costs() {
    for (jobs, context, askers) in [(32, 512, 32), (256, 512, 256), (256, 4096, 256), (256, 4096, 1)] {
        let config = Config { step_tokens: 1 << 20, ..Config::new(256 * 300, 256, 256) };
        let start = Instant::now();
        let mut scheduler = Scheduler::new(config, start);
        let mut plan = Plan::default();
        let mut results = Vec::new();
        for i in 0..jobs {
            scheduler.submit(JobId(i), of(i % askers), start).unwrap();
            let prompt = (0..context).map(|p| p + i as u32 * 10_000).collect();
            let sequence = Sequence { prompt, prefix: Vec::new(), limit: 256, at_end: false };
            scheduler.prepared(JobId(i), sequence, start).unwrap();
            scheduler.allow(JobId(i), 1000, start);
        }
        let ready = start.elapsed();
        let (mut plans, mut commits) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            let t0 = Instant::now();
            scheduler.plan(start, &mut plan);
            let t1 = Instant::now();
            results.clear();
            results.extend(plan.runs.iter().map(|run| (run.job, Sampled::Token(5))));
            let t2 = Instant::now();
            scheduler.sampled(&results);
            plans.push(t1 - t0);
            commits.push(t2.elapsed());
            assert_eq!(results.len(), jobs as usize);
        }
        let first = plans[0];
        plans.sort();
        commits.sort();
        println!(
            "{jobs} jobs of {askers} askers, context {context}: prepare {ready:?} in all, first plan {first:?}, \
             decode plan {:?} (p99 {:?}), sampled {:?} (p99 {:?})",
            plans[100], plans[198], commits[100], commits[198]
        );
    }
}
