//! The overlay: how Cocoon's peers find each other and carry bytes between them.
//!
//! Three layers, each usable without the one below it:
//!
//! * [`core`]: signed capacity ads, the directory of workers, choice, admission, standing. Sans-IO.
//! * [`wire`]: length-prefixed frames on any byte stream, read and written in batches.
//! * [`net`]: the libp2p swarm, run by one task, behind the cloneable handle [`Net`].
//!
//! This crate carries opaque bytes. It knows that a session is a stream between two peers and that
//! evidence is a blob with a SHA-256 digest; what they mean is for the crates above. It is the only one
//! that imports libp2p.
//!
//! ```text
//!            Net (handle) ──commands──► actor (task) ── owns ── Swarm<Behaviour>
//!   callers   │    ▲                      │ ads verified, snapshots, provider records, dials
//!             │    └── directory (shared, watchable) ◄──┘
//!             └── open_session ──► stream, straight to the connection: no actor on the data path
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod codec;
pub mod core;
#[doc(hidden)]
pub mod fuzz;
pub mod net;
pub mod wire;

pub use codec::CodecError;
pub use libp2p::{Multiaddr, PeerId, identity::Keypair};
pub use net::{
    Discovery, Incoming, Mode, Net, NetConfig, NetError, NetEvent, NetStatus, PeerView, SessionStream,
    SharedDirectory,
};
