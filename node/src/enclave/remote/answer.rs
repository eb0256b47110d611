//! One answer that a server makes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;

use cocoon_inference::engine::frontend::Writer;
use cocoon_inference::engine::{Answer, Next};
use cocoon_inference::scheduler::Salt;
use cocoon_inference::{EngineError, Token};

use super::client::{Client, Item, Stream};
use super::recount::Recount;
use super::wire::{End, Made, Order};

/// One answer.
pub(super) struct RemoteAnswer {
    writer: Writer,
    order: Order,
    /// The conversation and the answer so far.
    ids: Vec<u32>,
    client: Arc<Client>,
    recount: Arc<Recount>,
    stream: Option<Stream>,
    /// Whether the current order brought anything.
    served: bool,
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
            served: false,
            ready,
            ended: false,
            failed: None,
        }
    }

    fn token(&mut self, made: Made) -> Result<Next, EngineError> {
        let Made { id, logprobs } = made;
        if self.writer.ends(id) {
            return Ok(Next::End);
        }
        let text = self.writer.push(id)?;
        self.ids.push(id);
        let token = Token { id, text, logprobs };
        Ok(if self.writer.is_complete() { Next::Last(token) } else { Next::Token(token) })
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
                    self.served = true;
                    self.ready.extend(tokens);
                    continue;
                }
                Item::End(End::Stop) => self.ended = true,
                // An order that brings nothing would be repeated for ever.
                Item::End(End::Length) if !self.served => {
                    let why = "it has no room for another token of this answer";
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
            (None, None) if self.ended => Ok(Next::End),
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
        self.served = false;
        let (order, ids) = (&self.order, &self.ids);
        let body = |model: &str| order.body(model, ids, tokens, salt);
        let frontend = Arc::clone(self.writer.frontend());
        self.stream = Some(self.client.order(body, tokens, frontend, Arc::clone(&self.recount)));
    }
}
