//! The faucet: an ordinary v5r1 wallet that owns every coin at the start.
//!
//! Grants wait in memory and leave with the next block, all in one external message that the wallet's
//! own code executes, so that a grant is a transaction like any other and costs the faucet its fees. The
//! wallet's key is random and stays in the chain's file; knowing it is worth nothing elsewhere, since the
//! coins exist on this chain only.
//!
//! The layouts are those of wallet v5's `types.tlb` (ton-blockchain/wallet-contract-v5).

use ed25519_dalek::{Signer as _, SigningKey};
use tonlib_core::{
    tlb_types::tlb::TLB as _,
    wallet::{version_helper::VersionHelper, wallet_version::WalletVersion},
};
use tycho_types::{
    dict::Dict,
    models::{
        Account, AccountState, CurrencyCollection, ExtInMsgInfo, OwnedMessage, OwnedRelaxedMessage,
        RelaxedIntMsgInfo, RelaxedMsgInfo, StateInit, StdAddr,
    },
    prelude::{Boc, Cell, CellBuilder},
};

use super::{LocalChainError, mempool::Grant};

/// Grants in one block. The wallet could send 255 messages at once; the rest follows in the next block.
pub const GRANTS_PER_BLOCK: usize = 100;

/// Most coins of one grant: a million grants of this size are there to give.
pub const MAX_GRANT_NANOTON: u64 = 1_000_000_000_000;

/// Wallet id of the faucet; any number would do.
const WALLET_ID: u32 = 0x7fff_ff11;

/// "sign": an external request signed by the owner.
const SIGNED_EXTERNAL: u32 = 0x7369_676e;

/// `action_send_msg#0ec3c86d`.
const ACTION_SEND: u32 = 0x0ec3_c86d;

/// Fees apart from the value, and a failed message does not stop the others.
const MODE_PAY_FEES_IGNORE_ERRORS: u8 = 3;

/// Seconds for which a request is valid; it runs in the block for which it was made.
const VALID_S: u32 = 60;

/// The faucet's key and wallet.
pub(super) struct Faucet {
    key: SigningKey,
    address: StdAddr,
}

impl std::fmt::Debug for Faucet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Faucet").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Faucet {
    pub(super) fn new(secret: &[u8; 32]) -> Result<Self, LocalChainError> {
        let key = SigningKey::from_bytes(secret);
        let init = state_init(&key)?;
        let address = StdAddr::new(0, *CellBuilder::build_from(init)?.repr_hash());
        Ok(Self { key, address })
    }

    pub(super) fn address(&self) -> &StdAddr {
        &self.address
    }

    pub(super) fn state_init(&self) -> Result<StateInit, LocalChainError> {
        state_init(&self.key)
    }

    /// The external message that pays `grants` from the wallet in its present state.
    pub(super) fn pay(
        &self,
        account: Option<&Account>,
        now: u32,
        grants: &[Grant],
    ) -> Result<Cell, LocalChainError> {
        let seqno = account.and_then(seqno).ok_or(LocalChainError::Corrupt { what: "faucet" })?;
        let mut actions = Cell::default();
        for grant in grants {
            let mut action = CellBuilder::new();
            action.store_reference(actions)?;
            action.store_u32(ACTION_SEND)?;
            action.store_u8(MODE_PAY_FEES_IGNORE_ERRORS)?;
            action.store_reference(transfer(grant)?)?;
            actions = action.build()?;
        }
        let mut request = CellBuilder::new();
        request.store_u32(SIGNED_EXTERNAL)?;
        request.store_u32(WALLET_ID)?;
        request.store_u32(now.saturating_add(VALID_S))?;
        request.store_u32(seqno)?;
        request.store_bit_one()?;
        request.store_reference(actions)?;
        request.store_bit_zero()?;
        let signature = self.key.sign(&request.clone().build()?.repr_hash().0);
        request.store_raw(&signature.to_bytes(), 512)?;
        let info = ExtInMsgInfo { dst: self.address.clone().into(), ..ExtInMsgInfo::default() };
        let message =
            OwnedMessage { info: info.into(), init: None, body: request.build()?.into(), layout: None };
        Ok(CellBuilder::build_from(message)?)
    }
}

/// A plain, non-bounceable transfer: it arrives whether or not the account exists.
fn transfer(grant: &Grant) -> Result<Cell, LocalChainError> {
    let info = RelaxedIntMsgInfo {
        dst: grant.to.clone().into(),
        value: CurrencyCollection::new(u128::from(grant.nanoton)),
        ..RelaxedIntMsgInfo::default()
    };
    let info = RelaxedMsgInfo::Int(info);
    let message = OwnedRelaxedMessage { info, init: None, body: Cell::default().into(), layout: None };
    Ok(CellBuilder::build_from(message)?)
}

fn state_init(key: &SigningKey) -> Result<StateInit, LocalChainError> {
    let corrupt = || LocalChainError::Corrupt { what: "wallet code" };
    let code = VersionHelper::get_code(WalletVersion::V5R1).map_err(|_| corrupt())?;
    let code = Boc::decode(code.to_boc(false).map_err(|_| corrupt())?).map_err(|_| corrupt())?;
    let mut data = CellBuilder::new();
    data.store_bit_one()?; // signatures are allowed
    data.store_u32(0)?; // seqno
    data.store_u32(WALLET_ID)?;
    data.store_raw(key.verifying_key().as_bytes(), 256)?;
    data.store_bit_zero()?; // no extensions
    Ok(StateInit {
        split_depth: None,
        special: None,
        code: Some(code),
        data: Some(data.build()?),
        libraries: Dict::new(),
    })
}

fn seqno(account: &Account) -> Option<u32> {
    let AccountState::Active(init) = &account.state else { return None };
    let mut data = init.data.as_ref()?.as_slice().ok()?;
    data.skip_first(1, 0).ok()?;
    data.load_u32().ok()
}
