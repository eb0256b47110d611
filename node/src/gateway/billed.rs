//! The answers to one request together with the reservation that pays for them.
//!
//! However the request ends (its last event, an error, the deadline, a client that hangs up, which drops
//! it), what its answers have signed away by then is counted. An error after that says that it must not be
//! asked for again by itself: the client would pay again.
//!
//! Several answers (`n`) are asked for at the same time and polled in turn, so that none waits for another.
//! When one fails, the request has failed, and the others are dropped.

use std::future::Future;
use std::task::{Context, Poll};

use cocoon_client::{Answer, AnswerEvent, ChatError};
use cocoon_payments::NanoTon;
use futures::{Stream, StreamExt as _, future::poll_fn, stream::FuturesUnordered};

use super::{openai::error::ApiError, spend::Reservation};

/// See the module page.
pub(super) struct Billed<A: Spends = Answer> {
    answers: Vec<Choice<A>>,
    reservation: Reservation,
    /// Which of `answers` is polled first.
    turn: usize,
}

struct Choice<A> {
    /// Its number among the request's answers.
    index: usize,
    answer: A,
    ended: bool,
}

/// What is billed: an [`Answer`], or a test's.
pub(super) trait Spends: Stream<Item = Result<AnswerEvent, ChatError>> + Unpin {
    /// Everything signed away so far; valid also after the end.
    fn spent(&self) -> NanoTon;
}

impl Spends for Answer {
    fn spent(&self) -> NanoTon {
        Answer::spent(self)
    }
}

impl<A: Spends> Billed<A> {
    /// Waits until every answer has begun. Nothing is paid for one before that, but the first may be paid
    /// while the last begins.
    pub(super) async fn begin(
        beginnings: impl Iterator<Item = impl Future<Output = Result<A, ChatError>>>,
        reservation: Reservation,
    ) -> Result<Self, ApiError> {
        let mut billed = Self { answers: Vec::new(), reservation, turn: 0 };
        let numbered = beginnings.enumerate().map(|(index, begin)| async move { (index, begin.await) });
        let mut beginnings: FuturesUnordered<_> = numbered.collect();
        while let Some((index, begun)) = beginnings.next().await {
            let answer = begun.map_err(|error| ApiError::from(error).after_paying(billed.spent()))?;
            billed.answers.push(Choice { index, answer, ended: false });
        }
        Ok(billed)
    }

    /// The next event, and the number of the answer that it belongs to. An answer ends with `Finished`, so
    /// that any other end is an error; nothing follows the end of the last one.
    pub(super) async fn next(&mut self) -> Result<(usize, AnswerEvent), ApiError> {
        poll_fn(|context| self.poll_event(context)).await
    }

    pub(super) fn poll_event(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<(usize, AnswerEvent), ApiError>> {
        let count = self.answers.len();
        let mut running = false;
        for offset in 0..count {
            let at = (self.turn + offset) % count;
            let Some(choice) = self.answers.get_mut(at).filter(|choice| !choice.ended) else { continue };
            running = true;
            let Poll::Ready(event) = choice.answer.poll_next_unpin(context) else { continue };
            let Some(event) = event else { return Poll::Ready(Err(self.broken())) };
            choice.ended = matches!(event, Ok(AnswerEvent::Finished { .. }));
            let index = choice.index;
            self.turn = at + 1;
            if !matches!(event, Ok(AnswerEvent::Started { .. } | AnswerEvent::Tokens(_))) {
                // Counted before the client hears of it, so that what it asks next is held against it.
                let spent = self.spent();
                self.reservation.count(spent);
            }
            let event = event.map_err(|error| ApiError::from(error).after_paying(self.spent()));
            return Poll::Ready(event.map(|event| (index, event)));
        }
        if running { Poll::Pending } else { Poll::Ready(Err(self.broken())) }
    }

    fn spent(&self) -> NanoTon {
        self.answers.iter().fold(NanoTon::ZERO, |sum, choice| sum.saturating_add(choice.answer.spent()))
    }

    fn broken(&self) -> ApiError {
        let error = ChatError::Internal { what: "the answer ended without a receipt".into() };
        ApiError::from(error).after_paying(self.spent())
    }
}

impl<A: Spends> Drop for Billed<A> {
    fn drop(&mut self) {
        let spent = self.spent();
        self.reservation.count(spent);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::ready;
    use std::pin::Pin;
    use std::sync::Arc;

    use cocoon_client::Receipt;
    use cocoon_inference::{FinishReason, Usage};
    use futures::FutureExt as _;

    use super::*;
    use crate::gateway::spend::Spend;

    /// Yields its events without ever being pending.
    struct Fake {
        events: VecDeque<Result<AnswerEvent, ChatError>>,
        spent: NanoTon,
    }

    impl Stream for Fake {
        type Item = Result<AnswerEvent, ChatError>;

        fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            Poll::Ready(self.events.pop_front())
        }
    }

    impl Spends for Fake {
        fn spent(&self) -> NanoTon {
            self.spent
        }
    }

    fn tokens() -> Result<AnswerEvent, ChatError> {
        Ok(AnswerEvent::Tokens(Vec::new()))
    }

    fn end() -> Result<AnswerEvent, ChatError> {
        let receipt = Receipt { legs: Vec::new(), model: String::new(), total: NanoTon::ZERO };
        let usage = Usage::default();
        Ok(AnswerEvent::Finished { reason: FinishReason::Stop, text: String::new(), usage, receipt })
    }

    fn answer(spent: u64, events: Vec<Result<AnswerEvent, ChatError>>) -> Result<Fake, ChatError> {
        Ok(Fake { events: events.into(), spent: NanoTon(spent) })
    }

    fn begin(spend: &Arc<Spend>, answers: Vec<Result<Fake, ChatError>>) -> Result<Billed<Fake>, ApiError> {
        let reservation = spend.reserve(NanoTon::ZERO)?;
        Billed::begin(answers.into_iter().map(ready), reservation).now_or_never().unwrap()
    }

    fn next(billed: &mut Billed<Fake>) -> Result<(usize, AnswerEvent), ApiError> {
        billed.next().now_or_never().unwrap()
    }

    #[test]
    fn answers_take_turns_and_all_of_them_are_counted() {
        let spend = Arc::new(Spend::new(Some(NanoTon(1000))));
        let long = answer(3, vec![tokens(), tokens(), tokens(), end()]);
        let mut billed = begin(&spend, vec![long, answer(4, vec![tokens(), end()])]).unwrap();
        let mut order = Vec::new();
        for _ in 0..6 {
            order.push(next(&mut billed).unwrap().0);
        }
        let first = order[0];
        assert_eq!(order[..4], [first, 1 - first, first, 1 - first], "{order:?}");
        assert_eq!(order.iter().filter(|index| **index == 0).count(), 4);
        assert_eq!(spend.spent(), NanoTon(7));
        assert!(next(&mut billed).is_err(), "an event after the last");
        drop(billed);
        assert_eq!(spend.spent(), NanoTon(7));
    }

    #[test]
    fn one_failure_fails_the_request_and_says_that_it_was_paid_for() {
        let spend = Arc::new(Spend::new(Some(NanoTon(1000))));
        let failed = || ChatError::AllWorkersFailed { legs: Vec::new() };
        let mut billed = begin(&spend, vec![answer(5, vec![end()]), answer(0, vec![Err(failed())])]).unwrap();
        let error = loop {
            if let Err(error) = next(&mut billed) {
                break error;
            }
        };
        assert_eq!(error.retry_after, None, "the other answer was paid for");
        drop(billed);
        assert_eq!(spend.spent(), NanoTon(5));
    }

    #[test]
    fn what_was_paid_before_all_had_begun_is_counted_too() {
        let spend = Arc::new(Spend::new(None));
        let failed = Err(ChatError::AllWorkersFailed { legs: Vec::new() });
        // Which of the two is looked at first is the executor's affair; nothing may be lost either way.
        let error = begin(&spend, vec![answer(5, Vec::new()), failed]).err().unwrap();
        assert_eq!(spend.spent() == NanoTon(5), error.retry_after.is_none());
    }

    #[test]
    fn an_answer_that_ends_without_its_last_event_is_an_error() {
        let spend = Arc::new(Spend::new(None));
        let mut billed = begin(&spend, vec![answer(2, vec![tokens()])]).unwrap();
        assert!(next(&mut billed).is_ok());
        assert!(next(&mut billed).is_err());
        drop(billed);
        assert_eq!(spend.spent(), NanoTon(2));
    }
}
