//! The part of OpenAI's HTTP API that the gateway speaks: request parsing, response and error shapes.
//!
//! Pure functions of bytes and values: nothing here knows of sockets, axum or the light peer's tasks.

pub mod choice;
pub mod error;
pub mod request;
pub mod response;
pub mod sampling;
pub mod tools;
