//! Get methods: reading a contract by running it.

use num_bigint::BigInt;
use tycho_types::{
    models::{Account, AccountState, BlockchainConfigParams},
    prelude::{Boc, Cell, CellBuilder, Dict, HashBytes},
};
use tycho_vm::{BehaviourModifiers, OwnedCellSlice, RcStackValue, SafeRc, Stack, VmCaller, VmGetterArgs};

use super::execute::{NotExecuted, contain};

/// Values that a result may hold, nested ones counted: TVM tuples may share parts, so that a small result
/// can unfold into an endless one.
pub const MAX_STACK_VALUES: usize = 4096;

/// Bytes of cells that a result may hold.
pub const MAX_STACK_BYTES: usize = 1 << 20;

/// Deepest nesting of tuples in arguments and results; lists count as one level.
pub const MAX_STACK_DEPTH: usize = 16;

/// Exit code for an account without code, as toncenter reports it.
pub const EXIT_NOT_ACTIVE: i32 = -13;

/// A value on the stack of a get method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StackValue {
    /// Nothing, the empty list, or a missing optional.
    Null,
    /// A 257-bit integer.
    Int(BigInt),
    /// A number that is none.
    NotANumber,
    /// A cell.
    Cell(Cell),
    /// What was left of a slice, as a cell.
    Slice(Cell),
    /// A builder's content so far, as a cell.
    Builder(Cell),
    /// A tuple.
    Tuple(Vec<StackValue>),
    /// A LISP-style list.
    List(Vec<StackValue>),
}

/// What a get method returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetMethodOutput {
    /// 0 or 1 for success.
    pub exit_code: i32,
    /// Gas used.
    pub gas_used: u64,
    /// The stack, bottom first.
    pub stack: Vec<StackValue>,
}

/// Which get method to run.
#[derive(Debug, Clone)]
pub(super) enum Method {
    Name(String),
    Id(u32),
}

/// Runs a get method at `now` with the gas limit of a TON node, a million.
pub(super) fn run(
    config: &BlockchainConfigParams,
    now: u32,
    account: Option<&Account>,
    method: &Method,
    arguments: &[StackValue],
) -> Result<GetMethodOutput, NotExecuted> {
    let active = account.filter(|account| matches!(account.state, AccountState::Active(_)));
    let Some(account) = active else {
        return Ok(GetMethodOutput { exit_code: EXIT_NOT_ACTIVE, gas_used: 0, stack: Vec::new() });
    };
    contain(|| {
        let stack = arguments.iter().map(to_vm).collect::<Result<Vec<_>, _>>()?;
        let caller = VmCaller {
            libraries: Dict::new(),
            behaviour_modifiers: BehaviourModifiers::default(),
            config: config.clone(),
        };
        let mut arguments = VmGetterArgs::default();
        arguments.now = now;
        arguments.rand_seed = HashBytes::ZERO;
        let done = match method {
            Method::Name(name) => caller.call_getter_ext(account, name.as_str(), stack, &arguments, None),
            Method::Id(id) => caller.call_getter_ext(account, *id, stack, &arguments, None),
        };
        let output = done.map_err(|error| NotExecuted::Impossible(error.to_string()))?;
        let mut room = Room { values: MAX_STACK_VALUES, bytes: MAX_STACK_BYTES };
        let stack = output.stack.iter().map(|value| room.take(value, 0)).collect::<Result<_, _>>()?;
        Ok(GetMethodOutput { exit_code: output.exit_code, gas_used: output.gas_used, stack })
    })
}

fn to_vm(value: &StackValue) -> Result<RcStackValue, NotExecuted> {
    Ok(match value {
        StackValue::Null => Stack::make_null(),
        StackValue::NotANumber => Stack::make_nan(),
        StackValue::Int(value) => RcStackValue::new_dyn_value(value.clone()),
        StackValue::Cell(cell) => SafeRc::into_dyn_value(SafeRc::new(cell.clone())),
        StackValue::Slice(cell) => {
            RcStackValue::new_dyn_value(OwnedCellSlice::new_allow_exotic(cell.clone()))
        }
        StackValue::Builder(cell) => {
            let mut builder = CellBuilder::new();
            builder.store_slice(cell.as_slice_allow_exotic()).map_err(broken)?;
            RcStackValue::new_dyn_value(builder)
        }
        StackValue::Tuple(items) => {
            RcStackValue::new_dyn_value(items.iter().map(to_vm).collect::<Result<Vec<_>, _>>()?)
        }
        StackValue::List(items) => {
            let mut list = Stack::make_null();
            for item in items.iter().rev() {
                list = RcStackValue::new_dyn_value(vec![to_vm(item)?, list]);
            }
            list
        }
    })
}

/// What a result may still take.
struct Room {
    values: usize,
    bytes: usize,
}

impl Room {
    fn take(&mut self, value: &RcStackValue, depth: usize) -> Result<StackValue, NotExecuted> {
        self.values = self.values.checked_sub(1).ok_or_else(too_large)?;
        if depth > MAX_STACK_DEPTH {
            return Err(too_large());
        }
        if value.is_null() {
            return Ok(StackValue::Null);
        }
        if let Some(int) = value.as_int() {
            return Ok(StackValue::Int(int.clone()));
        }
        if let Some(cell) = value.as_cell() {
            return self.cell(cell.clone()).map(StackValue::Cell);
        }
        if let Some(slice) = value.as_cell_slice() {
            let cell = CellBuilder::build_from(slice.apply()).map_err(broken)?;
            return self.cell(cell).map(StackValue::Slice);
        }
        if let Some(builder) = value.as_cell_builder() {
            let cell = builder.clone().build().map_err(broken)?;
            return self.cell(cell).map(StackValue::Builder);
        }
        let Some(items) = value.as_tuple() else {
            // An integer that is NaN has the integers' type but no value; what else is left is a
            // continuation, which has no form outside the machine.
            let is_int = value.raw_ty() == tycho_vm::StackValueType::Int as u8;
            return if is_int {
                Ok(StackValue::NotANumber)
            } else {
                Err(NotExecuted::Impossible("the get method returned a continuation".into()))
            };
        };
        if let Some(list) = self.list(value, depth)? {
            return Ok(StackValue::List(list));
        }
        items.iter().map(|item| self.take(item, depth + 1)).collect::<Result<_, _>>().map(StackValue::Tuple)
    }

    /// The items of a LISP-style list: pairs of head and tail that end with null.
    fn list(&mut self, value: &RcStackValue, depth: usize) -> Result<Option<Vec<StackValue>>, NotExecuted> {
        let mut heads = Vec::new();
        let mut next = value;
        while !next.is_null() {
            let Some([head, tail]) = next.as_tuple() else { return Ok(None) };
            if heads.len() >= self.values {
                return Err(too_large());
            }
            heads.push(head);
            next = tail;
        }
        heads.into_iter().map(|head| self.take(head, depth + 1)).collect::<Result<_, _>>().map(Some)
    }

    fn cell(&mut self, cell: Cell) -> Result<Cell, NotExecuted> {
        // Counted as serialised, where shared parts count once.
        self.bytes = self.bytes.checked_sub(Boc::encode(&cell).len()).ok_or_else(too_large)?;
        Ok(cell)
    }
}

fn too_large() -> NotExecuted {
    NotExecuted::Impossible(format!(
        "the result is larger than {MAX_STACK_VALUES} values or {MAX_STACK_BYTES} bytes of cells"
    ))
}

fn broken(error: tycho_types::error::Error) -> NotExecuted {
    NotExecuted::Impossible(error.to_string())
}
