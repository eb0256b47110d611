//! Scenarios: what happens in a world, and what is measured.

pub(crate) mod meet;
