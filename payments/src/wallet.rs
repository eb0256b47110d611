//! The asker's and the worker's purse: wallet v5r1 from a 24-word mnemonic.
//!
//! Same words, same network, same address as in every TON wallet app: the seed is TON's own scheme
//! (not BIP-39), the contract is wallet v5r1 by `tonlib-core`, and the wallet id binds the network's
//! global id, so that a transfer signed for a test network cannot be replayed on mainnet.
//!
//! A [`Wallet`] only signs. [`submit`](crate::chain::submit) reads the sequence number, sends, and
//! waits until the transfer is in a block.

use std::fmt;

use ed25519_dalek::{Signer, SigningKey};
use rand::RngExt;
use thiserror::Error;
use tonlib_core::{
    cell::{ArcCell, Cell, CellBuilder, TonCellError},
    tlb_types::tlb::TLB,
    wallet::{
        mnemonic::{Mnemonic as TonMnemonic, WORDLIST_EN_SET},
        version_helper::VersionHelper,
        versioned::v5::WalletDataV5,
        wallet_version::WalletVersion,
    },
};
use zeroize::{Zeroize, Zeroizing};

use crate::{Address, NanoTon, cell};

/// Messages that one v5r1 transfer can carry.
pub const MAX_MESSAGES: usize = 255;
/// Pay forward fees beside the amount, and skip a message that cannot be sent: what v5r1 demands of
/// messages in external transfers, since otherwise a failing one could be replayed until it drains the
/// wallet in fees.
const MODE: u8 = 3;
/// Words in a mnemonic.
const WORDS: usize = 24;
/// One mnemonic in 256 is valid, so this many in a row fail with probability 10⁻¹⁷.
const MAX_ATTEMPTS: usize = 10_000;

/// 24 words. They are the money: shown once when made, erased from memory when dropped.
pub struct Mnemonic(Zeroizing<String>);

impl Mnemonic {
    /// The words, separated by single spaces.
    pub fn words(&self) -> &str {
        &self.0
    }
}

/// The words themselves; print them only to their owner.
impl fmt::Display for Mnemonic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Mnemonic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mnemonic(24 words)")
    }
}

/// Why words are no wallet, or a transfer cannot be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WalletError {
    /// A word missing, too many, or misspelt. The words are secret, so they are not repeated here.
    #[error(
        "the mnemonic is not one of 24 English TON words: {0}; check the spelling and order of the words"
    )]
    Mnemonic(&'static str),
    /// No random words were valid: the random number generator is broken.
    #[error("no valid mnemonic was found; the system's random number generator may be broken")]
    Random,
    /// Too many messages at once.
    #[error("a transfer carries at most {MAX_MESSAGES} messages, not {found}")]
    TooManyMessages {
        /// Messages given.
        found: usize,
    },
    /// A cell could not be built.
    #[error("the transfer's cells could not be built: {0}")]
    Cell(#[from] TonCellError),
}

/// A message that the wallet sends.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Where to.
    pub to: Address,
    /// How much.
    pub amount: NanoTon,
    /// Whether the coins come back if the destination cannot run.
    pub bounce: bool,
    /// What it says.
    pub body: Option<ArcCell>,
    /// Deploys the destination.
    pub state_init: Option<ArcCell>,
}

impl Outgoing {
    /// A call of a contract, able to bounce.
    pub fn call(to: Address, amount: NanoTon, body: ArcCell) -> Self {
        Self { to, amount, bounce: true, body: Some(body), state_init: None }
    }

    /// A plain payment, which must not bounce: the destination may not be deployed yet.
    pub fn payment(to: Address, amount: NanoTon) -> Self {
        Self { to, amount, bounce: false, body: None, state_init: None }
    }

    /// Deploys the destination as it calls it.
    pub fn with_state_init(mut self, state_init: ArcCell) -> Self {
        self.state_init = Some(state_init);
        self
    }

    /// `MessageRelaxed` as @ton/core lays it out: the body inline where it fits.
    fn cell(&self) -> Result<ArcCell, TonCellError> {
        let mut message = CellBuilder::new();
        // int_msg_info$0, ihr_disabled, bounce, not bounced, no source.
        message.store_bit(false)?.store_bit(true)?.store_bit(self.bounce)?.store_u8(3, 0)?;
        cell::store_address(&mut message, &self.to)?;
        cell::store_coins(&mut message, self.amount)?;
        // No extra currencies, no fees yet, created_lt and created_at are the validators'.
        message.store_bit(false)?.store_u8(8, 0)?.store_u64(64, 0)?.store_u32(32, 0)?;
        match &self.state_init {
            Some(init) => message.store_u8(2, 0b11)?.store_reference(init)?,
            None => message.store_bit(false)?,
        };
        match &self.body {
            Some(body) if self.state_init.is_none() && fits(&message, body) => {
                message.store_bit(false)?.store_cell(body)?
            }
            Some(body) => message.store_bit(true)?.store_reference(body)?,
            None => message.store_bit(false)?,
        };
        Ok(message.build()?.to_arc())
    }
}

fn fits(message: &CellBuilder, body: &Cell) -> bool {
    body.bit_len() < message.remaining_bits() && body.references().len() <= 4
}

/// A signed transfer.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// The external message, ready to send.
    pub boc: Vec<u8>,
    /// Its hash.
    pub hash: [u8; 32],
    /// Hash of its body, by which the transaction is found.
    pub body_hash: [u8; 32],
}

/// A wallet v5r1 on one network.
pub struct Wallet {
    key: SigningKey,
    address: Address,
    wallet_id: i32,
    global_id: i32,
    /// Held from reading the sequence number until the transfer is in a block, so that two tasks
    /// cannot sign for the same number.
    pub(crate) sending: tokio::sync::Mutex<()>,
}

impl Wallet {
    /// A new wallet and its words.
    #[allow(clippy::disallowed_methods)] // Words must be unpredictable: the system's generator is meant.
    pub fn generate(global_id: i32) -> Result<(Self, Mnemonic), WalletError> {
        let mut list: Vec<&'static str> = WORDLIST_EN_SET.keys().copied().collect();
        list.sort_unstable();
        let mut rng = rand::rng();
        for _ in 0..MAX_ATTEMPTS {
            let words: Vec<&str> =
                (0..WORDS).filter_map(|_| list.get(rng.random_range(0..list.len())).copied()).collect();
            // Only words whose derived check byte is zero are a mnemonic without password.
            if let Ok(valid) = TonMnemonic::new(words.clone(), &None) {
                let wallet = Self::from_ton_mnemonic(&valid, global_id)?;
                return Ok((wallet, Mnemonic(Zeroizing::new(words.join(" ")))));
            }
        }
        Err(WalletError::Random)
    }

    /// The wallet of these words on the network with this global id.
    pub fn from_mnemonic(words: &str, global_id: i32) -> Result<Self, WalletError> {
        let list: Vec<&str> = words.split_whitespace().collect();
        if list.len() != WORDS {
            return Err(WalletError::Mnemonic("it does not have 24 words"));
        }
        if list.iter().any(|word| !WORDLIST_EN_SET.contains_key(word.to_lowercase().as_str())) {
            return Err(WalletError::Mnemonic("a word is not in the list"));
        }
        let mnemonic = TonMnemonic::new(list, &None)
            .map_err(|_| WalletError::Mnemonic("its check fails, or it needs a password"))?;
        Self::from_ton_mnemonic(&mnemonic, global_id)
    }

    fn from_ton_mnemonic(mnemonic: &TonMnemonic, global_id: i32) -> Result<Self, WalletError> {
        let mut pair =
            mnemonic.to_key_pair().map_err(|_| WalletError::Mnemonic("no key could be derived from it"))?;
        let seed = pair.secret_key.first_chunk::<32>().copied().map(Zeroizing::new);
        pair.secret_key.zeroize();
        let seed = seed.ok_or(WalletError::Mnemonic("no key could be derived from it"))?;
        Self::from_key(SigningKey::from_bytes(&seed), global_id)
    }

    /// The wallet of a key.
    pub fn from_key(key: SigningKey, global_id: i32) -> Result<Self, WalletError> {
        // Context: client wallet (1), workchain 0 (8 bits), version 0 (8), subwallet 0 (15).
        let wallet_id = global_id ^ i32::MIN;
        let address = Address::base(cell::hash(&*state_init(&key, wallet_id)?));
        Ok(Self { key, address, wallet_id, global_id, sending: tokio::sync::Mutex::new(()) })
    }

    /// Where the wallet lives.
    pub fn address(&self) -> Address {
        self.address
    }

    /// The network that its transfers are valid on.
    pub fn global_id(&self) -> i32 {
        self.global_id
    }

    /// The wallet's key.
    pub fn signing_key(&self) -> &SigningKey {
        &self.key
    }

    /// Signs a transfer. With `seqno` zero it deploys the wallet too.
    pub fn transfer(
        &self,
        seqno: u32,
        valid_until: u32,
        messages: &[Outgoing],
    ) -> Result<Transfer, WalletError> {
        if messages.len() > MAX_MESSAGES {
            return Err(WalletError::TooManyMessages { found: messages.len() });
        }
        let mut actions = CellBuilder::new().build()?.to_arc();
        for message in messages {
            let mut action = CellBuilder::new();
            action
                .store_reference(&actions)?
                .store_u32(32, 0x0ec3_c86d)?
                .store_u8(8, MODE)?
                .store_reference(&message.cell()?)?;
            actions = action.build()?.to_arc();
        }
        let mut request = CellBuilder::new();
        request
            .store_u32(32, 0x7369_676e)?
            .store_i32(32, self.wallet_id)?
            .store_u32(32, valid_until)?
            .store_u32(32, seqno)?
            .store_bit(true)?
            .store_reference(&actions)?
            .store_bit(false)?;
        let request = request.build()?;
        let signature = self.key.sign(&cell::hash(&request)).to_bytes();
        let body = CellBuilder::new().store_cell(&request)?.store_slice(&signature)?.build()?.to_arc();

        // ext_in_msg_info$10, no source, to the wallet, no import fee.
        let mut external = CellBuilder::new();
        external.store_u8(4, 0b1000)?;
        cell::store_address(&mut external, &self.address)?;
        external.store_u8(4, 0)?;
        if seqno == 0 {
            external.store_u8(2, 0b11)?.store_reference(&state_init(&self.key, self.wallet_id)?)?;
        } else {
            external.store_bit(false)?;
        }
        external.store_bit(true)?.store_reference(&body)?;
        let external = external.build()?.to_arc();
        Ok(Transfer {
            boc: cell::to_boc(&external)?,
            hash: cell::hash(&external),
            body_hash: cell::hash(&body),
        })
    }
}

impl fmt::Debug for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wallet")
            .field("address", &self.address)
            .field("global_id", &self.global_id)
            .finish_non_exhaustive()
    }
}

fn state_init(key: &SigningKey, wallet_id: i32) -> Result<ArcCell, TonCellError> {
    let data = WalletDataV5::new(wallet_id, key.verifying_key().to_bytes().into()).to_cell()?;
    let mut init = CellBuilder::new();
    init.store_u8(5, 0b00110)?
        .store_reference(VersionHelper::get_code(WalletVersion::V5R1)?)?
        .store_reference(&data.to_arc())?;
    Ok(init.build()?.to_arc())
}

/// The sequence number in a v5r1 wallet's data.
pub(crate) fn seqno(data: &Cell) -> Result<u32, TonCellError> {
    let mut parser = data.parser();
    parser.load_bit()?;
    parser.load_u32(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAINNET: i32 = -239;

    /// Values that `@ton/ton` 16.3 computed for the same key, time and message.
    #[test]
    fn address_and_signed_body_equal_those_of_the_ton_sdk() {
        let wallet = Wallet::from_key(SigningKey::from_bytes(&[1; 32]), MAINNET).unwrap();
        assert_eq!(
            wallet.address().to_string(),
            "0:9d1e1843624c4d175a695a8c2de8a5a61f03b93336e8caa4e164bf6cbbab205e"
        );
        let mut body = CellBuilder::new();
        body.store_u32(32, 0x544f_5055).unwrap().store_u32(32, 1_780_259_200).unwrap();
        let message =
            Outgoing::call(Address::base([0x11; 32]), NanoTon(2_000_000_000), body.build().unwrap().to_arc());
        let transfer = wallet.transfer(0, 1_780_000_060, &[message]).unwrap();
        assert_eq!(
            hex::encode(transfer.body_hash),
            "1c4d21ee7f316a42d6032c6fa484f1f730d9753c5700fa8f77fc19a910e0c4b1"
        );
        let external = cell::parse(&transfer.boc).unwrap();
        assert_eq!(cell::hash(&external), transfer.hash);
    }

    #[test]
    fn a_known_mnemonic_gives_its_known_key() {
        let words = "dose ice enrich trigger test dove century still betray gas diet dune use other \
                     base gym mad law immense village world example praise game";
        let wallet = Wallet::from_mnemonic(words, MAINNET).unwrap();
        assert_eq!(
            hex::encode(wallet.signing_key().to_bytes()),
            "119dcf2840a3d56521d260b2f125eedc0d4f3795b9e627269a4b5a6dca8257bd"
        );
    }

    #[test]
    fn generated_words_give_the_wallet_back() {
        let (wallet, words) = Wallet::generate(-217).unwrap();
        let again = Wallet::from_mnemonic(words.words(), -217).unwrap();
        assert_eq!(again.address(), wallet.address());
        let elsewhere = Wallet::from_key(wallet.signing_key().clone(), MAINNET).unwrap();
        assert_ne!(elsewhere.address(), wallet.address(), "the network is in the address");
    }

    #[test]
    fn wrong_words_are_refused_without_repeating_them() {
        for words in ["", "dose ice", &"zzzz ".repeat(24), &"dose ".repeat(24)] {
            let error = Wallet::from_mnemonic(words, MAINNET).unwrap_err().to_string();
            assert!(error.contains("mnemonic") && !error.contains("dose") && !error.contains("zzzz"));
        }
    }

    #[test]
    fn a_transfer_carries_at_most_255_messages() {
        let wallet = Wallet::from_key(SigningKey::from_bytes(&[1; 32]), MAINNET).unwrap();
        let message = Outgoing::payment(Address::base([2; 32]), NanoTon(1));
        assert!(wallet.transfer(1, 2, &vec![message.clone(); 255]).is_ok());
        assert!(matches!(
            wallet.transfer(1, 2, &vec![message; 256]),
            Err(WalletError::TooManyMessages { found: 256 })
        ));
    }
}
