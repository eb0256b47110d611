//! What toncenter does not say about a transaction: how its code ended. Read from the raw cells.

use tonlib_core::cell::{CellParser, TonCellError};

use crate::cell::{self, Cell};

/// How the code of a transaction ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) gas_used: Option<u64>,
    pub(super) exit_code: Option<i32>,
    pub(super) action_code: Option<i32>,
}

/// Reads `Transaction` (block.tlb) as far as its description.
pub(super) fn outcome(transaction: &Cell) -> Result<Outcome, TonCellError> {
    let mut parser = transaction.parser();
    if parser.load_u8(4)? != 0b0111 {
        return Err(TonCellError::InvalidCellData("expected transaction$0111".into()));
    }
    // References: messages, perhaps extra currencies, state update, description.
    let Some(description) = transaction.references().last() else {
        return Err(TonCellError::InvalidCellData("the transaction has no description".into()));
    };
    let mut parser = description.parser();
    // Only trans_ord$0000 is of interest: the others are the masterchain's own.
    if parser.load_u8(4)? != 0 {
        return Ok(Outcome::default());
    }
    parser.load_bit()?; // credit_first
    if parser.load_bit()? {
        // storage_fees_collected, storage_fees_due, status_change
        cell::load_coins(&mut parser)?;
        skip_optional_coins(&mut parser)?;
        skip_status_change(&mut parser)?;
    }
    if parser.load_bit()? {
        // due_fees_collected, credit
        skip_optional_coins(&mut parser)?;
        cell::load_coins(&mut parser)?;
        if parser.load_bit()? {
            parser.next_reference()?;
        }
    }
    let mut outcome = Outcome::default();
    if parser.load_bit()? {
        parser.load_u8(3)?; // success, msg_state_used, account_activated
        cell::load_coins(&mut parser)?; // gas_fees
        let compute = parser.next_reference()?;
        let mut compute = compute.parser();
        outcome.gas_used = Some(load_short(&mut compute, 3)?);
        load_short(&mut compute, 3)?; // gas_limit
        if compute.load_bit()? {
            load_short(&mut compute, 2)?; // gas_credit
        }
        compute.load_u8(8)?; // mode
        outcome.exit_code = Some(compute.load_i32(32)?);
    } else {
        // The reason why it was skipped: cskip_suspended$110 or two bits.
        if parser.load_u8(2)? == 0b11 {
            parser.load_bit()?;
        }
    }
    if parser.load_bit()? {
        let action = parser.next_reference()?;
        let mut action = action.parser();
        action.load_u8(3)?; // success, valid, no_funds
        skip_status_change(&mut action)?;
        skip_optional_coins(&mut action)?;
        skip_optional_coins(&mut action)?;
        outcome.action_code = Some(action.load_i32(32)?);
    }
    Ok(outcome)
}

fn skip_optional_coins(parser: &mut CellParser<'_>) -> Result<(), TonCellError> {
    if parser.load_bit()? {
        cell::load_coins(parser)?;
    }
    Ok(())
}

/// `acst_unchanged$0`, `acst_frozen$10`, `acst_deleted$11`.
fn skip_status_change(parser: &mut CellParser<'_>) -> Result<(), TonCellError> {
    if parser.load_bit()? {
        parser.load_bit()?;
    }
    Ok(())
}

/// `VarUInteger` with a length of `bits` bits, at most 7 bytes.
fn load_short(parser: &mut CellParser<'_>, bits: usize) -> Result<u64, TonCellError> {
    let len = parser.load_u8(bits)?;
    let mut value = 0;
    for _ in 0..len {
        value = value << 8 | u64::from(parser.load_u8(8)?);
    }
    Ok(value)
}
