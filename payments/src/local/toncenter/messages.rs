//! Messages and the transactions they cause.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tycho_types::{
    models::{
        ComputePhase, ExtInMsgInfo, IntAddr, MsgInfo, OwnedMessage, StateInit, StdAddr, Transaction, TxInfo,
    },
    prelude::{Boc, Cell, CellBuilder, CellFamily as _, Store as _},
};

use super::{
    super::{LocalChain, LocalChainError, StoredTransaction, chain::parse_external, std_addr},
    ToncenterError,
    accounts::transaction_id,
    blocks::base64,
    params::{Params, bad},
};
use crate::Address;

/// Transactions in one answer.
const MAX_PAGE: usize = 256;

/// Transactions of one account that the search for a message's transaction looks through.
const MAX_LOCATE: usize = 10_000;

pub(super) fn transactions(chain: &LocalChain, params: &Params<'_>) -> Result<Value, ToncenterError> {
    let address = params.address("address")?;
    let limit = params.number::<u32>("limit")?.map_or(10, |limit| limit as usize).min(MAX_PAGE);
    let from = params.number::<u64>("lt")?;
    // toncenter writes "no lower bound" as 0.
    let to = params.number::<u64>("to_lt")?.filter(|lt| *lt > 0);
    let found = chain.stored_transactions(&address, from, to, limit)?;
    // A page starts with the transaction that its caller names, so that no other history is continued.
    if let (Some(lt), Some(hash), Some(first)) = (from, params.hash("hash")?, found.first())
        && (first.lt, first.hash) != (lt, hash)
    {
        return Err(ToncenterError::new(404, format!("the account has no transaction {lt} with this hash")));
    }
    found.iter().map(render).collect()
}

pub(super) fn locate_result(chain: &LocalChain, params: &Params<'_>) -> Result<Value, ToncenterError> {
    let source = std_addr(&params.address("source")?);
    let destination = params.address("destination")?;
    let created_lt = params.required_number::<u64>("created_lt")?;
    let arrived = |transaction: &Transaction| {
        matches!(
            transaction.load_in_msg().ok().flatten().map(|message| message.info),
            Some(MsgInfo::Int(info)) if info.created_lt == created_lt && is(&info.src, &source)
        )
    };
    // A message arrives after it was sent.
    locate(chain, &destination, Some(created_lt), None, arrived)
}

pub(super) fn locate_source(chain: &LocalChain, params: &Params<'_>) -> Result<Value, ToncenterError> {
    let source = params.address("source")?;
    let destination = std_addr(&params.address("destination")?);
    let created_lt = params.required_number::<u64>("created_lt")?;
    let sent = |transaction: &Transaction| {
        transaction.iter_out_msgs().flatten().any(|message| {
            matches!(message.info, MsgInfo::Int(info) if info.created_lt == created_lt && is(&info.dst, &destination))
        })
    };
    locate(chain, &source, None, Some(created_lt), sent)
}

fn is(address: &IntAddr, expected: &StdAddr) -> bool {
    matches!(address, IntAddr::Std(address) if address == expected)
}

fn locate(
    chain: &LocalChain,
    account: &Address,
    after: Option<u64>,
    before: Option<u64>,
    accept: impl Fn(&Transaction) -> bool,
) -> Result<Value, ToncenterError> {
    let mut from = before;
    for _ in 0..MAX_LOCATE / MAX_PAGE {
        let page = chain.stored_transactions(account, from, after, MAX_PAGE)?;
        for stored in &page {
            if accept(&decode(stored)?) {
                return render(stored);
            }
        }
        match page.last().and_then(|stored| stored.lt.checked_sub(1)) {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    Err(ToncenterError::new(
        404,
        "no transaction of this message was found; it may not have been delivered yet",
    ))
}

pub(super) fn send(chain: &LocalChain, params: &Params<'_>) -> Result<Value, ToncenterError> {
    chain.submit(&params.bytes("boc")?)?;
    Ok(json!({ "@type": "ok" }))
}

pub(super) fn send_return_hash(chain: &LocalChain, params: &Params<'_>) -> Result<Value, ToncenterError> {
    let boc = params.bytes("boc")?;
    let hash = chain.submit(&boc)?;
    Ok(
        json!({ "@type": "raw.extMessageInfo", "hash": base64(&hash), "hash_norm": base64(&normalized_hash(&boc)?) }),
    )
}

/// The hash under which the same message is found however it was laid out (TEP-467).
fn normalized_hash(boc: &[u8]) -> Result<[u8; 32], ToncenterError> {
    let (destination, message) = parse_external(boc)?;
    let body = body_cell(&message.parse()?)?;
    let mut builder = CellBuilder::new();
    builder.store_small_uint(0b10, 2)?; // ext_in_msg_info
    builder.store_zeros(2)?; // no source
    destination.store_into(&mut builder, Cell::empty_context())?;
    builder.store_zeros(4)?; // no import fee
    builder.store_bit_zero()?; // no state init
    builder.store_bit_one()?; // body by reference
    builder.store_reference(body)?;
    Ok(builder.build()?.repr_hash().0)
}

pub(super) fn estimate_fee(chain: &LocalChain, params: &Params<'_>) -> Result<Value, ToncenterError> {
    let destination = std_addr(&params.address("address")?);
    let body = params.cell("body")?.ok_or_else(|| bad("body", "is missing"))?;
    let (code, data) = (params.cell("init_code")?, params.cell("init_data")?);
    let init = (code.is_some() || data.is_some()).then(|| StateInit { code, data, ..StateInit::default() });
    let info = ExtInMsgInfo { dst: destination.clone().into(), ..ExtInMsgInfo::default() };
    let message = OwnedMessage { info: info.into(), init, body: body.into(), layout: None };
    let message = CellBuilder::build_from(message)?;
    let ignore_signatures = params.get("ignore_chksig").is_none() || params.flag("ignore_chksig")?;
    let transaction = chain.simulate(&destination, &message, ignore_signatures)?;
    let fees = Fees::of(&transaction)?;
    Ok(json!({
        "@type": "query.fees",
        "source_fees": {
            "@type": "fees",
            "in_fwd_fee": number(fees.import()),
            "storage_fee": number(fees.storage),
            "gas_fee": number(fees.gas),
            "fwd_fee": number(fees.forward),
        },
        "destination_fees": [],
    }))
}

/// What a transaction cost its account, in nanoTON.
struct Fees {
    total: u128,
    storage: u128,
    gas: u128,
    /// Part of the forward fees that the action phase kept.
    action: u128,
    /// All forward fees of sent messages.
    forward: u128,
    /// Part of the forward fees that travels with sent messages.
    sent: u128,
}

impl Fees {
    fn of(transaction: &Transaction) -> Result<Self, ToncenterError> {
        let mut fees = Self {
            total: transaction.total_fees.tokens.into_inner(),
            storage: 0,
            gas: 0,
            action: 0,
            forward: 0,
            sent: 0,
        };
        if let TxInfo::Ordinary(info) = transaction.load_info()? {
            fees.storage = info.storage_phase.map_or(0, |phase| phase.storage_fees_collected.into_inner());
            if let ComputePhase::Executed(phase) = info.compute_phase {
                fees.gas = phase.gas_fees.into_inner();
            }
            if let Some(phase) = info.action_phase {
                fees.action = phase.total_action_fees.map_or(0, |fee| fee.into_inner());
                fees.forward = phase.total_fwd_fees.map_or(0, |fee| fee.into_inner());
            }
        }
        for message in transaction.iter_out_msgs() {
            if let MsgInfo::Int(info) = message?.info {
                fees.sent = fees.sent.saturating_add(info.fwd_fee.into_inner());
            }
        }
        Ok(fees)
    }

    /// Import fee of the external message: what is left of the total.
    fn import(&self) -> u128 {
        self.total.saturating_sub(self.storage).saturating_sub(self.gas).saturating_sub(self.action)
    }
}

/// As JSON number; fees are far below 2^64.
fn number(nanoton: u128) -> u64 {
    u64::try_from(nanoton).unwrap_or(u64::MAX)
}

fn decode(stored: &StoredTransaction) -> Result<Transaction, ToncenterError> {
    let cell = Boc::decode(&stored.boc).map_err(|_| LocalChainError::Corrupt { what: "transactions" })?;
    Ok(cell.parse::<Transaction>()?)
}

fn render(stored: &StoredTransaction) -> Result<Value, ToncenterError> {
    let transaction = decode(stored)?;
    let fees = Fees::of(&transaction)?;
    // As tonlib counts: what stayed here and what travels on with the messages.
    let fee = fees.total.saturating_add(fees.sent);
    let mut rendered = json!({
        "@type": "raw.transaction",
        "address": { "@type": "accountAddress", "account_address": stored.account.friendly(true, false) },
        "utime": transaction.now,
        "data": BASE64_STANDARD.encode(&stored.boc),
        "transaction_id": transaction_id(stored.lt, &stored.hash),
        "fee": fee.to_string(),
        "storage_fee": fees.storage.to_string(),
        "other_fee": fee.saturating_sub(fees.storage).to_string(),
    });
    if let Some(message) = &transaction.in_msg {
        rendered["in_msg"] = render_message(message)?;
    }
    let sent: Result<Value, ToncenterError> =
        transaction.out_msgs.iter().map(|entry| render_message(&entry?.1)).collect();
    rendered["out_msgs"] = sent?;
    Ok(rendered)
}

fn render_message(cell: &Cell) -> Result<Value, ToncenterError> {
    let message: OwnedMessage = cell.parse()?;
    let body = body_cell(&message)?;
    let init = message.init.map(CellBuilder::build_from).transpose()?;
    let (mut source, mut destination, mut value, mut fwd_fee, mut created_lt) =
        (String::new(), String::new(), 0, 0, 0);
    match &message.info {
        MsgInfo::Int(info) => {
            source = friendly(&info.src);
            destination = friendly(&info.dst);
            value = info.value.tokens.into_inner();
            fwd_fee = info.fwd_fee.into_inner();
            created_lt = info.created_lt;
        }
        MsgInfo::ExtIn(info) => destination = friendly(&info.dst),
        MsgInfo::ExtOut(info) => {
            source = friendly(&info.src);
            created_lt = info.created_lt;
        }
    }
    Ok(json!({
        "@type": "raw.message",
        "hash": base64(&cell.repr_hash().0),
        "source": source,
        "destination": destination,
        "value": value.to_string(),
        "extra_currencies": [],
        "fwd_fee": fwd_fee.to_string(),
        "ihr_fee": "0",
        "created_lt": created_lt.to_string(),
        "body_hash": base64(&body.repr_hash().0),
        "msg_data": {
            "@type": "msg.dataRaw",
            "body": BASE64_STANDARD.encode(Boc::encode(&body)),
            "init_state": init.map(|init| BASE64_STANDARD.encode(Boc::encode(init))).unwrap_or_default(),
        },
        "message": comment(&body).unwrap_or_default(),
    }))
}

fn body_cell(message: &OwnedMessage) -> Result<Cell, tycho_types::error::Error> {
    let (range, cell) = &message.body;
    CellBuilder::build_from(range.apply_allow_exotic(cell))
}

fn friendly(address: &IntAddr) -> String {
    match address {
        IntAddr::Std(address) => {
            Address { workchain: address.workchain, hash: address.address.0 }.friendly(true, false)
        }
        IntAddr::Var(_) => String::new(),
    }
}

/// The text of a message that carries a comment: 32 zero bits, then UTF-8 over a chain of cells.
fn comment(body: &Cell) -> Option<String> {
    let mut slice = body.as_slice().ok()?;
    if slice.load_u32().ok()? != 0 {
        return None;
    }
    let mut text = Vec::new();
    loop {
        let bits = slice.size_bits();
        if bits % 8 != 0 {
            return None;
        }
        let mut bytes = vec![0; usize::from(bits / 8)];
        slice.load_raw(&mut bytes, bits).ok()?;
        text.extend_from_slice(&bytes);
        if slice.is_refs_empty() {
            break;
        }
        slice = slice.load_reference_as_slice().ok()?;
    }
    String::from_utf8(text).ok()
}
