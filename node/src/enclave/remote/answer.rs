//! One answer that a server makes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;

use cocoon_inference::EngineError;
use cocoon_inference::engine::frontend::Writer;
use cocoon_inference::engine::{Answer, Next};
use cocoon_inference::scheduler::Salt;

use super::client::{Client, Item, Reading, Stream};
use super::recount::Recount;
use super::wire::{End, Made, Order};

/// Orders in a row that may bring nothing.
const EMPTY_ORDERS: u32 = 2;
/// Tokens that a character may take.
const CHARACTER: u32 = 4;

/// One answer.
pub(super) struct RemoteAnswer {
    writer: Writer,
    order: Order,
    /// The conversation and the answer so far.
    ids: Vec<u32>,
    client: Arc<Client>,
    recount: Arc<Recount>,
    stream: Option<Stream>,
    /// Most tokens of the answer, those of a prefix included.
    limit: u32,
    /// Orders in a row that brought nothing: the last one counts as such until it does.
    empty: u32,
    /// Tokens that arrived and were not asked for yet.
    ready: VecDeque<Made>,
    /// The model ended its turn after them.
    ended: bool,
    /// Why nothing follows them.
    failed: Option<EngineError>,
}

impl RemoteAnswer {
    pub(super) fn new(
        writer: Writer,
        order: Order,
        ids: Vec<u32>,
        limit: u32,
        client: Arc<Client>,
        recount: Arc<Recount>,
    ) -> Self {
        let ready = VecDeque::new();
        Self {
            writer,
            order,
            ids,
            client,
            recount,
            stream: None,
            limit,
            empty: 0,
            ready,
            ended: false,
            failed: None,
        }
    }

    fn token(&mut self, made: Made) -> Result<Next, EngineError> {
        let Made { id, logprobs } = made;
        if self.writer.ends(id) {
            return self.end();
        }
        self.ids.push(id);
        // There may be more of it, which nobody else would wake up for.
        self.client.news().tell();
        self.writer.push(id, logprobs)
    }

    /// The model ended its turn. A form that it left unfinished is the server's fault.
    fn end(&mut self) -> Result<Next, EngineError> {
        match self.writer.may_end()? {
            true => Ok(Next::End),
            false => Err(EngineError::Server(
                "it ended the answer before its form was complete; it does not follow `structured_outputs`"
                    .into(),
            )),
        }
    }

    /// Takes what arrived, up to the next tokens.
    fn take(&mut self) {
        while let (true, Some(stream)) = (self.ready.is_empty() && self.failed.is_none(), &self.stream) {
            let item = match stream.items.try_recv() {
                Ok(item) => item,
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => Item::Failed("its connection is gone".into()),
            };
            match item {
                Item::Tokens(tokens) => {
                    self.empty = 0;
                    self.ready.extend(tokens);
                    continue;
                }
                Item::End(End::Stop) => self.ended = true,
                // A server may hold the beginning of a character back until it has the rest. More than that, and
                // orders that bring nothing would be repeated for ever.
                Item::End(End::Length) if self.empty > EMPTY_ORDERS => {
                    let why = "it ended several orders without a token; its context may be full";
                    self.failed = Some(EngineError::Server(why.into()));
                }
                Item::End(End::Length) => {}
                Item::Failed(why) => self.failed = Some(EngineError::Server(why)),
            }
            self.stream = None;
        }
    }
}

impl Answer for RemoteAnswer {
    fn next(&mut self, _: &mut [f32]) -> Result<Next, EngineError> {
        self.take();
        match (self.ready.pop_front(), &self.failed) {
            (Some(made), _) => self.token(made),
            (None, Some(why)) => Err(why.clone()),
            (None, None) if self.ended => self.end(),
            (None, None) => Ok(Next::Later),
        }
    }

    fn finish(&mut self) -> String {
        self.writer.finish()
    }

    fn order(&mut self, tokens: u32, salt: &Salt) {
        self.take();
        let waits = self.stream.is_some() || !self.ready.is_empty() || self.ended || self.failed.is_some();
        if waits {
            return;
        }
        let tokens = match self.order.whole {
            // All of it at once. What is not paid for yet waits here.
            true => self.limit.saturating_sub(self.writer.made()).max(tokens),
            false => tokens.saturating_add(CHARACTER * self.empty),
        };
        self.empty += 1;
        let (order, ids) = (&self.order, &self.ids);
        let body = |model: &str| order.body(model, ids, tokens, salt);
        let reading = Reading {
            frontend: Arc::clone(self.writer.frontend()),
            recount: Arc::clone(&self.recount),
            prompt: ids.len(),
            tokens,
            top: order.top,
        };
        self.stream = Some(self.client.order(body, reading));
    }
}
