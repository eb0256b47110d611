//! A whole network of real processes on this machine.
//!
//! [`Localnet::up`] makes what the network needs (a chain, a genesis, a software TEE, wallets), then starts
//! the local chain, a bootstrap peer, a host and an enclave for each worker, and a gateway, all on free
//! loopback ports and each as a process of its own, and waits until an answer could be had. The state
//! directory outlives the processes: started again on it, the network has the same identities, wallets,
//! channels and vouchers, also after `kill -9`.

mod faucet;
mod genesis;
mod layout;
mod lock;
mod network;
mod process;
mod supervisor;

pub(crate) use faucet::Faucet;
pub use genesis::{NewNetwork, SetupError};
pub(crate) use genesis::{ensure_key, ensure_wallet, write_private};
pub use layout::Layout;
pub use network::{AttachError, ChainEndpoint, Kind, Network, ProcessInfo};
pub use process::{Process, ProcessError, tail};
pub use supervisor::{Engine, Localnet, Options, Progress, UpError};
