//! What every HTTP surface of this program shares: the [`guard`] in front of its routes.

pub mod guard;
