//! The runner with real threads.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use cocoon_inference::engine::{
    Answer, Engine, EngineError, Executor, Logits, Next, Resources, Shape, Started,
};
use cocoon_inference::runner::{Event, JobHandle, Runner, RunnerLimits, Terms};
use cocoon_inference::scheduler::{BlockId, Plan, Run, Sequence};
use cocoon_inference::{
    AnswerForm, EchoEngine, FinishReason, GenerateRequest, ModelInfo, Paced, RequestError, Sampling, Token,
    Usage,
};

use crate::testkit::{engine, request};

const PATIENCE: Duration = Duration::from_secs(20);

fn runner(engine: impl Engine + 'static, slots: usize, queue: usize) -> Runner {
    Runner::spawn(Arc::new(engine), RunnerLimits { slots, queue, ..RunnerLimits::default() }).unwrap()
}

fn terms() -> Terms {
    Terms::of(1, [7; 32])
}

fn submit(runner: &Runner, content: &str) -> (JobHandle, Receiver<Event>) {
    let (sender, receiver) = sync_channel(4096);
    let sink = move |event| sender.send(event).unwrap_or_default();
    let job = request(runner.engine().as_ref(), content, Sampling::default());
    (runner.submit(job, terms(), Box::new(sink)).unwrap(), receiver)
}

fn next(events: &Receiver<Event>) -> Event {
    events.recv_timeout(PATIENCE).expect("no event came")
}

/// Takes events until `count` tokens came.
fn tokens(events: &Receiver<Event>, count: usize) -> usize {
    let mut seen = 0;
    while seen < count {
        match next(events) {
            Event::Tokens(tokens) => seen += tokens.len(),
            other => panic!("expected tokens, found {other:?}"),
        }
    }
    seen
}

#[test]
fn a_job_waits_for_its_allowance_and_stops_exactly_there() {
    let runner = runner(EchoEngine::new(50, 10), 2, 2);
    let (handle, events) = submit(&runner, "hello");
    assert_eq!(next(&events), Event::Prepared { prompt_tokens: 5, form: AnswerForm::default() });
    assert!(events.recv_timeout(Duration::from_millis(30)).is_err(), "ran without allowance");
    handle.allow(7);
    assert_eq!(tokens(&events, 7), 7);
    assert!(events.recv_timeout(Duration::from_millis(30)).is_err(), "ran beyond its allowance");
    handle.allow(3);
    assert!(events.recv_timeout(Duration::from_millis(30)).is_err(), "an allowance went down");
    handle.allow(50);
    assert_eq!(tokens(&events, 43), 43);
    // The end costs nothing, so it needs no allowance beyond the last token.
    let usage = Usage { prompt_tokens: 5, cached_tokens: 0, completion_tokens: 50 };
    assert_eq!(next(&events), Event::Finished { reason: FinishReason::Stop, text: String::new(), usage });
}

#[test]
fn the_first_token_comes_alone_and_the_others_in_few_events() {
    let runner = runner(EchoEngine::new(201, 10), 1, 0);
    let (handle, events) = submit(&runner, "hello");
    handle.allow(u32::MAX);
    let mut sizes = Vec::new();
    loop {
        match next(&events) {
            Event::Tokens(tokens) => sizes.push(tokens.len()),
            Event::Finished { .. } => break,
            _ => {}
        }
    }
    assert_eq!(sizes[0], 1);
    assert_eq!(sizes.iter().sum::<usize>(), 201);
    assert!(sizes.len() <= 20, "{sizes:?}");
}

#[test]
fn dropping_the_handle_cancels_a_parked_and_a_running_job() {
    let paced = Paced::new(Arc::new(EchoEngine::new(1_000_000, 1)), Duration::from_millis(1));
    let runner = runner(paced, 2, 0);
    for allowance in [0, u32::MAX] {
        let (handle, events) = submit(&runner, "x");
        assert!(matches!(next(&events), Event::Prepared { .. }));
        handle.allow(allowance);
        drop(handle);
        loop {
            match next(&events) {
                Event::Tokens(_) => {}
                Event::Finished { reason, .. } => {
                    assert_eq!(reason, FinishReason::Cancelled);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(events.recv_timeout(PATIENCE).is_err(), "an event after the last");
    }
}

#[test]
fn jobs_beyond_the_slots_are_priced_and_wait_and_beyond_the_queue_are_refused() {
    let paced = Paced::new(Arc::new(EchoEngine::new(10, 1)), Duration::from_secs(3600));
    let runner = runner(paced, 1, 1);
    let (first, first_events) = submit(&runner, "a");
    next(&first_events);
    first.allow(4);
    assert_eq!(tokens(&first_events, 1), 1);
    let (second, second_events) = submit(&runner, "b");
    assert!(matches!(next(&second_events), Event::Prepared { .. }));
    let load = runner.load();
    assert_eq!((load.active, load.queued), (1, 1));
    let job = request(runner.engine().as_ref(), "c", Sampling::default());
    assert!(runner.submit(job, terms(), Box::new(|_| ())).is_err());
    second.allow(10);
    // The first one has nothing to do for an hour, so its slot is of more use to the second.
    assert_eq!(tokens(&second_events, 1), 1);
    let load = runner.load();
    assert_eq!((load.active, load.queued, load.cache.preempted), (1, 1, 1));
    drop(first);
    drop(second);
}

#[test]
fn a_refused_request_says_why() {
    let runner = runner(EchoEngine::new(1, 1), 1, 0);
    let (sender, events) = sync_channel(8);
    let job =
        GenerateRequest { model: [9; 32], ..request(runner.engine().as_ref(), "x", Sampling::default()) };
    let sink = move |event| sender.send(event).unwrap_or_default();
    let _handle = runner.submit(job, terms(), Box::new(sink)).unwrap();
    assert_eq!(next(&events), Event::Rejected(RequestError::UnknownModel));
}

/// An engine whose steps the test lets happen one by one, or which breaks.
struct Stepwise {
    info: ModelInfo,
    permits: std::sync::Mutex<Option<Receiver<()>>>,
    stepped: SyncSender<u32>,
}

struct StepwiseExecutor {
    permits: Receiver<()>,
    stepped: SyncSender<u32>,
    made: u32,
}

struct Counting(u32);

impl Engine for Stepwise {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn start(&self, _: &GenerateRequest) -> Result<Started, RequestError> {
        let sequence = Sequence { prompt: vec![1], prefix: Vec::new(), limit: 1000, at_end: false };
        Ok(Started { sequence, form: AnswerForm::default(), answer: Box::new(Counting(0)) })
    }

    fn shape(&self) -> Shape {
        Shape { block_tokens: 16, block_bytes: 1, prefill: 16, context: 2000 }
    }

    fn executor(&self, _: Resources) -> Result<Box<dyn Executor>, EngineError> {
        let permits = self.permits.lock().unwrap().take().unwrap();
        Ok(Box::new(StepwiseExecutor { permits, stepped: self.stepped.clone(), made: 0 }))
    }
}

impl Executor for StepwiseExecutor {
    fn wipe(&mut self, _: &[BlockId]) {}

    fn run(&mut self, _: &Plan, _: &[Run]) -> Result<Logits, EngineError> {
        self.made += 1;
        self.stepped.send(self.made).unwrap();
        assert!(self.permits.recv().is_ok(), "the engine breaks off");
        Ok(Logits::default())
    }
}

impl Answer for Counting {
    fn next(&mut self, _: &mut [f32]) -> Result<Next, EngineError> {
        self.0 += 1;
        Ok(Next::Token(Token::new(self.0, "")))
    }

    fn finish(&mut self) -> String {
        String::new()
    }
}

fn stepwise() -> (Stepwise, SyncSender<()>, Receiver<u32>) {
    let (permit, permits) = sync_channel(100);
    let (stepped, steps) = sync_channel(100);
    let info = EchoEngine::new(1, 1).info().clone();
    (Stepwise { info, permits: std::sync::Mutex::new(Some(permits)), stepped }, permit, steps)
}

#[test]
fn a_cancelled_job_makes_no_further_step() {
    let (engine, permit, steps) = stepwise();
    let runner = runner(engine, 1, 0);
    let (handle, events) = submit(&runner, "x");
    handle.allow(u32::MAX);
    steps.recv_timeout(PATIENCE).unwrap();
    permit.send(()).unwrap();
    assert_eq!(steps.recv_timeout(PATIENCE), Ok(2));
    handle.cancel();
    permit.send(()).unwrap();
    loop {
        if let Event::Finished { reason, usage, .. } = next(&events) {
            assert_eq!((reason, usage.completion_tokens), (FinishReason::Cancelled, 2));
            break;
        }
    }
    assert!(steps.try_recv().is_err(), "a step after the cancellation");
}

#[test]
fn an_engine_that_panics_fails_its_job_and_no_other() {
    let (engine, permit, _steps) = stepwise();
    let runner = runner(engine, 2, 0);
    let (handle, events) = submit(&runner, "x");
    handle.allow(9);
    drop(permit);
    loop {
        match next(&events) {
            Event::Failed(_) => break,
            Event::Prepared { .. } | Event::Tokens(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(runner.load().active, 0);
}

#[test]
fn several_answers_of_the_real_engine_are_each_what_they_would_be_alone() {
    use cocoon_inference::engine::complete;
    let runner = runner(engine().clone(), 3, 9);
    let jobs: Vec<_> = (0..6)
        .map(|seed| {
            let sampling = Sampling { temperature: 0.8, seed, max_tokens: Some(20), ..Sampling::default() };
            let job = request(engine(), "Tell me.", sampling);
            let (sender, events) = sync_channel(4096);
            let sink = move |event| sender.send(event).unwrap_or_default();
            let handle = runner.submit(job.clone(), terms(), Box::new(sink)).unwrap();
            (job, handle, events)
        })
        .collect();
    for (job, handle, events) in jobs {
        let mut text = String::new();
        let mut allowance = 0;
        loop {
            match next(&events) {
                Event::Prepared { .. } => {}
                Event::Tokens(tokens) => text.extend(tokens.into_iter().map(|t| t.text)),
                Event::Finished { text: tail, .. } => {
                    text += &tail;
                    break;
                }
                other => panic!("{other:?}"),
            }
            allowance += 8;
            handle.allow(allowance);
        }
        assert_eq!(text, complete(engine(), &job, |_| ()).unwrap().text);
    }
}

#[test]
fn a_reader_that_panics_harms_no_other() {
    let runner = runner(EchoEngine::new(5, 1), 2, 0);
    let job = request(runner.engine().as_ref(), "x", Sampling::default());
    let _broken = runner.submit(job, terms(), Box::new(|_| panic!("the reader breaks off"))).unwrap();
    let (handle, events) = submit(&runner, "y");
    handle.allow(5);
    assert!(matches!(next(&events), Event::Prepared { .. }));
    assert_eq!(tokens(&events, 5), 5);
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a step that takes its time")]
fn a_slow_engine_s_tokens_are_handed_over_step_by_step() {
    let (engine, permit, steps) = stepwise();
    let runner = runner(engine, 1, 0);
    let (handle, events) = submit(&runner, "x");
    handle.allow(u32::MAX);
    assert!(matches!(next(&events), Event::Prepared { .. }));
    for made in 1..4 {
        assert_eq!(steps.recv_timeout(PATIENCE), Ok(made));
        // Longer than tokens wait for each other.
        std::thread::sleep(Duration::from_millis(5));
        permit.send(()).unwrap();
        assert_eq!(tokens(&events, 1), 1, "token {made} waits for the next");
    }
    drop(handle);
    permit.send(()).unwrap();
}
