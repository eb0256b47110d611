//! How the embedded model is made: text from a generator, a decoder trained with burn, and an
//! evaluation that goes through the serving engine.
//!
//! [`corpus`] and [`facts`] write the text, [`bytes`] turns it into tokens, [`model`] is the decoder
//! as a training graph, [`trainer`] the loop, [`questions`] what is asked to judge it, and [`export`]
//! writes the checkpoint directory that any loader of Hugging Face checkpoints reads. `cocoon-train`
//! is the command line around them.

pub mod bytes;
pub mod corpus;
pub mod export;
pub mod facts;
pub mod model;
pub mod questions;
pub mod trainer;
pub mod wordings;
