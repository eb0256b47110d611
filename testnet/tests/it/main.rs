//! End-to-end tests over real processes. Each starts its own network in a folder of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod capture;
mod demo;
mod errors;
mod failover;
mod lifecycle;
mod support;
mod tamper;
