// Writes config.boc, the blockchain configuration that every local chain starts from.
//
// Run from testnet/npm after `npm ci`:
//   node ../../payments/src/local/config/generate.mjs
//
// The base is the slim mainnet configuration of @ton/sandbox (December 2025). What is changed, and
// why, stands beside each change. ConfigParam 19, the global id, is a placeholder here: a chain
// writes its own when it is created.
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { writeFileSync } from "node:fs";

const require = createRequire(join(process.cwd(), "package.json"));
const { beginCell, Cell, Dictionary } = require("@ton/core");
const { slimConfig } = require("@ton/sandbox/dist/config/slimConfig.js");

/// Exact bits of a cell, as a dictionary value that is written back unchanged.
const verbatim = {
  serialize: (value, builder) => builder.storeSlice(value),
  parse: (slice) => {
    const copy = slice.clone();
    slice.skip(slice.remainingBits);
    while (slice.remainingRefs > 0) slice.loadRef();
    return copy;
  },
};

/// ConfigParam 12: mainnet describes its workchain as `workchain_v2#a7`, which tycho-types cannot
/// parse. `workchain#a6` is the same record without the trailing persistent-state split depth.
export function withOldWorkchain(config) {
  const param = config.get(12).beginParse();
  const workchains = param.loadDict(Dictionary.Keys.Int(32), verbatim);
  for (const [id, description] of workchains) {
    const slice = description.clone();
    if (slice.loadUint(8) !== 0xa7) throw Error(`workchain ${id} is not workchain_v2`);
    workchains.set(id, beginCell().storeUint(0xa6, 8).storeBits(slice.loadBits(716)).endCell().beginParse());
  }
  config.set(12, beginCell().storeDict(workchains).endCell());
}

/// ConfigParam 43 as mainnet writes it (v2 and later) is misread by tycho-types. Without it the
/// node's default limits hold.
export function withoutSizeLimits(config) {
  config.delete(43);
}

function prices18() {
  // One entry only: TVM getters fail on two in tycho-types 0.3.6. Basechain prices are those in force
  // since 2026-04-29, masterchain prices are unchanged.
  const entry = beginCell()
    .storeUint(0xcc, 8)
    .storeUint(0, 32) // utime_since: in force from the start
    .storeUint(0, 64) // bit_price_ps
    .storeUint(135, 64) // cell_price_ps
    .storeUint(1000, 64) // mc_bit_price_ps
    .storeUint(500000, 64) // mc_cell_price_ps
    .endCell();
  const prices = Dictionary.empty(Dictionary.Keys.Uint(32), verbatim);
  prices.set(0, entry.beginParse());
  return beginCell().storeDictDirect(prices).endCell();
}

/// ConfigParam 21, basechain gas: 66.67 nanoTON per unit since 2026 instead of 400.
function gas21() {
  return beginCell()
    .storeUint(0xd1, 8)
    .storeUint(100, 64) // flat_gas_limit
    .storeUint(6667, 64) // flat_gas_price
    .storeUint(0xde, 8)
    .storeUint(4369067, 64) // gas_price, 16-bit fixed point
    .storeUint(1000000, 64) // gas_limit
    .storeUint(1000000, 64) // special_gas_limit
    .storeUint(10000, 64) // gas_credit
    .storeUint(10000000, 64) // block_gas_limit
    .storeUint(100000000, 64) // freeze_due_limit
    .storeUint(1000000000, 64) // delete_due_limit
    .endCell();
}

/// ConfigParam 25, basechain message forwarding, six times cheaper since 2026.
function forward25() {
  return beginCell()
    .storeUint(0xea, 8)
    .storeUint(66667, 64) // lump_price
    .storeUint(4369067, 64) // bit_price
    .storeUint(436906667, 64) // cell_price
    .storeUint(98304, 32) // ihr_price_factor
    .storeUint(21845, 16) // first_frac
    .storeUint(21845, 16) // next_frac
    .endCell();
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const config = Dictionary.loadDirect(
    Dictionary.Keys.Int(32),
    Dictionary.Values.Cell(),
    Cell.fromBase64(slimConfig).beginParse(),
  );
  withOldWorkchain(config);
  withoutSizeLimits(config);
  config.set(18, prices18());
  config.set(19, beginCell().storeInt(0, 32).endCell());
  config.set(21, gas21());
  config.set(25, forward25());
  const root = beginCell().storeDictDirect(config, Dictionary.Keys.Int(32), Dictionary.Values.Cell()).endCell();
  const path = join(dirname(fileURLToPath(import.meta.url)), "config.boc");
  writeFileSync(path, root.toBoc());
  console.log(`${path}: ${root.toBoc().length} bytes, root ${root.hash().toString("hex")}`);
}
