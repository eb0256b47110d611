//! TON's cells, by `tonlib-core`, and the one door through which foreign bags of cells come in.
//!
//! A *cell* holds up to 1,023 bits and four references to other cells; a *bag of cells* (BoC) is the
//! serialised tree. `tonlib-core`'s parser trusts its input: it allocates what the header asks for and
//! indexes without looking, so a BoC from a chain endpoint or a peer could end the process. [`parse`]
//! therefore walks the bytes first and passes on only what it has bounded and checked.

use thiserror::Error;
pub use tonlib_core::cell::{ArcCell, Cell, CellBuilder, CellParser, TonCellError};
use tonlib_core::{TonAddress, cell::BagOfCells};

use crate::{Address, NanoTon};

/// Nothing that this crate reads comes near this: the contract's code and data are under 2 KiB, a
/// transaction a few. It bounds what a lying chain endpoint can make us parse.
pub const MAX_BOC_BYTES: usize = 256 * 1024;

/// A bag of [`MAX_BOC_BYTES`] could hold more, but none that we want does.
const MAX_CELLS: usize = 8192;

/// TON's own limit; also what keeps the recursion of parsing and dropping shallow.
const MAX_DEPTH: u16 = 512;

/// Why bytes are not a bag of cells that this crate accepts.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BocError {
    /// Checked before parsing.
    #[error("the bag of cells has {len} bytes, at most {max} are read")]
    TooLarge {
        /// Bytes found.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Not text of base64.
    #[error("the bag of cells is not valid base64")]
    Base64,
    /// The structure is wrong or of a kind that is not read here.
    #[error("the bag of cells is malformed: {0}")]
    Malformed(&'static str),
    /// `tonlib-core` refused what the checks here let pass.
    #[error("the bag of cells is malformed: {0}")]
    Cell(String),
}

/// Reads a bag with one root.
pub fn parse(boc: &[u8]) -> Result<ArcCell, BocError> {
    check(boc)?;
    BagOfCells::parse(boc)
        .and_then(BagOfCells::single_root)
        .map_err(|error| BocError::Cell(error.to_string()))
}

/// Reads a bag with one root from standard base64, as toncenter sends it.
pub fn parse_base64(text: &str) -> Result<ArcCell, BocError> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    if text.len() > MAX_BOC_BYTES * 4 / 3 + 4 {
        return Err(BocError::TooLarge { len: text.len() / 4 * 3, max: MAX_BOC_BYTES });
    }
    parse(&STANDARD.decode(text).map_err(|_| BocError::Base64)?)
}

/// Serialises a tree, with the checksum that most tools expect.
pub fn to_boc(root: &ArcCell) -> Result<Vec<u8>, TonCellError> {
    BagOfCells::new(std::slice::from_ref(root)).serialize(true)
}

/// The representation hash: what signatures and addresses are made of.
pub fn hash(cell: &Cell) -> [u8; 32] {
    cell.cell_hash().into()
}

/// `addr_std`, 267 bits. (`CellBuilder::store_address` would write the all-zero address as *none*.)
pub fn store_address(builder: &mut CellBuilder, address: &Address) -> Result<(), TonCellError> {
    builder.store_raw_address(&TonAddress::from(*address))?;
    Ok(())
}

/// `Grams`: length in bytes, then the number.
pub fn store_coins(builder: &mut CellBuilder, amount: NanoTon) -> Result<(), TonCellError> {
    let bytes = amount.0.to_be_bytes();
    let used = 8 - amount.0.leading_zeros() as usize / 8;
    builder.store_u8(4, used as u8)?;
    builder.store_slice(&bytes[8 - used..])?;
    Ok(())
}

/// Reads `addr_std` without anycast.
pub(crate) fn load_address(parser: &mut CellParser<'_>) -> Result<Address, TonCellError> {
    let kind = parser.load_u8(3)?;
    if kind != 0b100 {
        return Err(TonCellError::InvalidCellData("expected a standard address without anycast".into()));
    }
    let workchain = parser.load_i8(8)?;
    let mut hash = [0; 32];
    parser.load_slice(&mut hash)?;
    Ok(Address { workchain, hash })
}

/// Reads `Grams` that fit a `u64`; more than that does not exist.
pub(crate) fn load_coins(parser: &mut CellParser<'_>) -> Result<NanoTon, TonCellError> {
    let bytes = usize::from(parser.load_u8(4)?);
    if bytes > 8 {
        return Err(TonCellError::InvalidCellData("an amount exceeds 2^64 nanoTON".into()));
    }
    let mut value = [0; 8];
    parser.load_slice(&mut value[8 - bytes..])?;
    Ok(NanoTon(u64::from_be_bytes(value)))
}

/// A reader over the bytes that never goes past their end.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], BocError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(BocError::Malformed("it ends early"))?;
        self.0 = rest;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, BocError> {
        Ok(self.take(1)?[0])
    }

    /// A big-endian number of at most 4 bytes.
    fn number(&mut self, bytes: usize) -> Result<usize, BocError> {
        Ok(self.take(bytes)?.iter().fold(0, |value, byte| value << 8 | usize::from(*byte)))
    }
}

/// Checks everything that `tonlib-core` assumes: sizes within the bytes there are, references that
/// point forward and exist, one root, ordinary cells (library cells too: other people's accounts hold
/// them), depth. The checksum is checked as well, which it skips.
fn check(boc: &[u8]) -> Result<(), BocError> {
    use BocError::Malformed;
    if boc.len() > MAX_BOC_BYTES {
        return Err(BocError::TooLarge { len: boc.len(), max: MAX_BOC_BYTES });
    }
    let mut bytes = Bytes(boc);
    if bytes.take(4)? != [0xb5, 0xee, 0x9c, 0x72] {
        return Err(Malformed("it does not begin with b5ee9c72"));
    }
    let flags = bytes.byte()?;
    let (has_index, has_checksum, size) = (flags & 0x80 != 0, flags & 0x40 != 0, flags & 7);
    let (size, offset_size) = (usize::from(size), usize::from(bytes.byte()?));
    if !(1..=4).contains(&size) || !(1..=4).contains(&offset_size) || flags & 0x18 != 0 {
        return Err(Malformed("its header has impossible sizes"));
    }
    let cells = bytes.number(size)?;
    let roots = bytes.number(size)?;
    let absent = bytes.number(size)?;
    let total = bytes.number(offset_size)?;
    if cells == 0 || cells > MAX_CELLS || roots != 1 || absent != 0 {
        return Err(Malformed("it must have one root and 1 to 8192 cells"));
    }
    if bytes.number(size)? >= cells {
        return Err(Malformed("its root does not exist"));
    }
    if has_index {
        bytes.take(cells * offset_size)?;
    }
    let mut body = Bytes(bytes.take(total)?);
    let mut references = Vec::with_capacity(cells);
    for index in 0..cells {
        references.push(check_cell(&mut body, index, cells, size)?);
    }
    if !body.0.is_empty() {
        return Err(Malformed("bytes follow its last cell"));
    }
    if has_checksum {
        let covered = &boc[..boc.len() - bytes.0.len()];
        let crc = tonlib_core::cell::CRC_32_ISCSI.checksum(covered);
        if bytes.take(4)? != crc.to_le_bytes() {
            return Err(Malformed("its checksum is wrong"));
        }
    }
    if !bytes.0.is_empty() {
        return Err(Malformed("bytes follow it"));
    }
    // References point forward only, so one backward pass knows every depth.
    let mut depths = vec![0u16; cells];
    for (index, children) in references.iter().enumerate().rev() {
        let deepest = children.iter().flatten().map(|child| depths[*child] + 1);
        depths[index] = deepest.max().unwrap_or(0);
        if depths[index] > MAX_DEPTH {
            return Err(Malformed("it is deeper than 512 cells"));
        }
    }
    Ok(())
}

/// Checks one cell and returns its references.
fn check_cell(
    body: &mut Bytes<'_>,
    index: usize,
    cells: usize,
    size: usize,
) -> Result<[Option<usize>; 4], BocError> {
    use BocError::Malformed;
    let (d1, d2) = (body.byte()?, body.byte()?);
    let (count, exotic) = (usize::from(d1 & 7), d1 & 8 != 0);
    if count > 4 {
        return Err(Malformed("a cell has more than four references"));
    }
    if d1 & 0x10 != 0 || d1 & 0xe0 != 0 {
        return Err(Malformed("proofs and pruned cells are not read here"));
    }
    let data = body.take(usize::from(d2).div_ceil(2))?;
    if d2 & 1 == 1 && data.last().is_none_or(|last| *last == 0) {
        return Err(Malformed("a cell's last byte lacks its end mark"));
    }
    if exotic && (data.first() != Some(&2) || d2 != 66 || count != 0) {
        return Err(Malformed("a cell is of a special kind not read here"));
    }
    let mut references = [None; 4];
    for slot in references.iter_mut().take(count) {
        let target = body.number(size)?;
        if target <= index || target >= cells {
            return Err(Malformed("a reference does not point forward to a cell"));
        }
        *slot = Some(target);
    }
    Ok(references)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> ArcCell {
        let leaf = CellBuilder::new().store_u32(31, 7).unwrap().build().unwrap().to_arc();
        let mut root = CellBuilder::new();
        store_address(&mut root, &Address::base([3; 32])).unwrap();
        store_coins(&mut root, NanoTon(1_000_000_007)).unwrap();
        root.store_reference(&leaf).unwrap().store_reference(&leaf).unwrap();
        root.build().unwrap().to_arc()
    }

    #[test]
    fn a_tree_survives_serialisation() {
        let cell = sample();
        let back = parse(&to_boc(&cell).unwrap()).unwrap();
        assert_eq!(hash(&back), hash(&cell));
        let mut parser = back.parser();
        assert_eq!(load_address(&mut parser).unwrap(), Address::base([3; 32]));
        assert_eq!(load_coins(&mut parser).unwrap(), NanoTon(1_000_000_007));
    }

    #[test]
    fn every_amount_is_stored_as_ton_stores_it() {
        for amount in [0, 1, 255, 256, u64::MAX] {
            let mut ours = CellBuilder::new();
            store_coins(&mut ours, NanoTon(amount)).unwrap();
            let mut theirs = CellBuilder::new();
            theirs.store_coins(&amount.into()).unwrap();
            assert_eq!(hash(&ours.build().unwrap()), hash(&theirs.build().unwrap()), "{amount}");
        }
    }

    #[test]
    fn a_truncated_or_extended_bag_is_refused() {
        let boc = to_boc(&sample()).unwrap();
        for len in 0..boc.len() {
            assert!(parse(&boc[..len]).is_err(), "{len} bytes");
        }
        let longer = [boc.as_slice(), &[0]].concat();
        assert!(parse(&longer).is_err());
        assert!(matches!(parse(&vec![0; MAX_BOC_BYTES + 1]), Err(BocError::TooLarge { .. })));
    }

    #[test]
    fn headers_that_would_crash_tonlib_core_are_refused() {
        // 4 billion cells announced; a root that does not exist; a reference past the end.
        for boc in [
            "b5ee9c720404ffffffff00000001000000000000000a00000000",
            "b5ee9c7201010101000305000000",
            "b5ee9c72010101010004000100000900",
        ] {
            assert!(parse(&hex::decode(boc).unwrap()).is_err(), "{boc}");
        }
    }

    proptest! {
        #[test]
        fn flipped_bytes_never_panic(position in 0usize..200, value: u8) {
            let mut boc = to_boc(&sample()).unwrap();
            let index = position % boc.len();
            boc[index] = value;
            let _ = parse(&boc);
            // Without a checksum more mutants reach the parser.
            boc[4] &= !0x40;
            boc.truncate(boc.len() - 4);
            let _ = parse(&boc);
        }
    }
}
