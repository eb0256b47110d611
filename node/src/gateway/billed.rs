//! An answer together with the reservation that pays for it.
//!
//! However the answer ends (its last event, an error, the deadline, a client that hangs up, which drops
//! it), what it has signed away by then is counted. An error after that says that it must not be asked
//! for again by itself: the client would pay again.

use std::task::{Context, Poll};

use cocoon_client::{Answer, AnswerEvent, ChatError};
use futures::{StreamExt as _, future::poll_fn};

use super::{openai::error::ApiError, spend::Reservation};

/// See the module page.
pub(super) struct Billed {
    answer: Answer,
    reservation: Reservation,
}

impl Billed {
    pub(super) fn new(answer: Answer, reservation: Reservation) -> Self {
        Self { answer, reservation }
    }

    /// The next event. An answer ends with `Finished`, so that any other end is an error.
    pub(super) async fn next(&mut self) -> Result<AnswerEvent, ApiError> {
        poll_fn(|context| self.poll_event(context)).await
    }

    pub(super) fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Result<AnswerEvent, ApiError>> {
        let Poll::Ready(event) = self.answer.poll_next_unpin(context) else { return Poll::Pending };
        let event = event.unwrap_or_else(|| {
            Err(ChatError::Internal { what: "the answer ended without a receipt".into() })
        });
        if let Ok(AnswerEvent::Started { .. } | AnswerEvent::Tokens(_)) = event {
            return Poll::Ready(event.map_err(ApiError::from));
        }
        // Counted before the client hears of it, so that what it asks next is held against it.
        self.reservation.count(self.answer.spent());
        Poll::Ready(event.map_err(|error| ApiError::from(error).after_paying(self.answer.spent())))
    }
}

impl Drop for Billed {
    fn drop(&mut self) {
        self.reservation.count(self.answer.spent());
    }
}
