//! How the embedded model is made: text from a generator, a decoder trained with burn, and an
//! evaluation that goes through the serving engine.
//!
//! The text is [`corpus`]'s, of [`tasks`] that are asked plainly, under a system message ([`manners`]), for
//! JSON ([`forms`]) or with [`functions`] on offer; [`source`] draws all choices and keeps the held-out part
//! apart. [`chat`] renders it with the template that is served and cuts it into the tokens of [`tokenizer`].
//! [`model`] is the decoder as a training graph, [`trainer`] the loop, [`questions`] and [`evaluation`] judge
//! it, and [`export`] writes the checkpoint directory that any loader of Hugging Face checkpoints reads.
//! `cocoon-train` is the command line around them.

pub mod chat;
pub mod corpus;
pub mod evaluation;
pub mod export;
pub mod facts;
pub mod forms;
pub mod functions;
pub mod manners;
pub mod model;
pub mod numbers;
pub mod questions;
pub mod source;
pub mod tasks;
pub mod tokenizer;
pub mod trainer;
pub mod wordings;
