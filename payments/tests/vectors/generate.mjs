// Writes vectors.json: transactions executed by the official TON emulator (the C++ node's code as WASM
// inside @ton/sandbox), with the account before and after each. tests/it/local_vectors.rs replays them in
// the local chain's TVM.
//
// Run from testnet/npm after `npm ci`:
//   node ../../payments/tests/vectors/generate.mjs
//
// The contract is vector_channel.tolk, an early payment channel that stays as it is: it is here to make
// the machine do things (signatures, deploys, bounces, throws, sends), not to be the channel of today.
// Keys are fixed, so that the output is the same on every run.
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { readFileSync, writeFileSync } from "node:fs";
import { withOldWorkchain, withoutSizeLimits } from "../../src/local/config/generate.mjs";

const require = createRequire(join(process.cwd(), "package.json"));
const { Blockchain } = require("@ton/sandbox");
const { slimConfig } = require("@ton/sandbox/dist/config/slimConfig.js");
const { beginCell, Cell, contractAddress, Dictionary, external, internal, SendMode, storeShardAccount, toNano } = require("@ton/core");
const { keyPairFromSeed, sign } = require("@ton/crypto");
const { WalletContractV4, WalletContractV5R1 } = require("@ton/ton");
const { runTolkCompiler } = require("@ton/tolk-js");

const here = dirname(fileURLToPath(import.meta.url));
const OP = { topUp: 0x544f5055, settle: 0x53544c45, requestClose: 0x52434c53, finalize: 0x46494e41, coopClose: 0x434f4f50 };
const VOUCHER_TAG = 0x564f5543;

async function compile() {
  const file = "vector_channel.tolk";
  const result = await runTolkCompiler({
    entrypointFileName: file,
    fsReadCallback: (path) => readFileSync(join(here, path), "utf8"),
  });
  if (result.status !== "ok") throw Error(result.message);
  return Cell.fromBase64(result.codeBoc64);
}

/// The emulator's configuration, as far as tycho can read it; no value of it differs.
function readableConfig() {
  const [keys, values] = [Dictionary.Keys.Int(32), Dictionary.Values.Cell()];
  const config = Dictionary.loadDirect(keys, values, Cell.fromBase64(slimConfig).beginParse());
  withOldWorkchain(config);
  withoutSizeLimits(config);
  return beginCell().storeDictDirect(config, keys, values).endCell().toBoc().toString("base64");
}

/// Every transaction that the emulator runs from here on.
function record(blockchain) {
  const transactions = [];
  const { executor } = blockchain;
  const run = executor.runTransaction.bind(executor);
  executor.runTransaction = async (args) => {
    const done = await run(args);
    if (!done.result.success) throw Error(`not accepted: ${JSON.stringify(done.result)}`);
    transactions.push({
      before: args.shardAccount,
      message: args.message.toBoc().toString("base64"),
      now: args.now,
      lt: args.lt.toString(),
      transaction: done.result.transaction,
      after: done.result.shardAccount,
    });
    return done;
  };
  return transactions;
}

const blockchain = await Blockchain.create({ config: "slim" });
blockchain.now = 1780000000;
const code = await compile();
const transactions = record(blockchain);

const clientKey = keyPairFromSeed(Buffer.alloc(32, 1));
const workerKey = keyPairFromSeed(Buffer.alloc(32, 2));
const client = await blockchain.treasury("client");
const worker = await blockchain.treasury("worker");
const stranger = await blockchain.treasury("rnd");

const constants = beginCell()
  .storeBuffer(clientKey.publicKey)
  .storeBuffer(workerKey.publicKey)
  .storeUint(7, 128)
  .storeUint(3600, 32)
  .endCell();
const data = beginCell()
  .storeCoins(0)
  .storeUint(blockchain.now + 86400, 32)
  .storeUint(0, 32)
  .storeAddress(client.address)
  .storeAddress(worker.address)
  .storeRef(constants)
  .endCell();
const init = { code, data };
const channel = contractAddress(0, init);

const voucher = (total) =>
  beginCell().storeUint(VOUCHER_TAG, 32).storeUint(7, 128).storeAddress(channel).storeCoins(total).endCell();
const op = (code) => beginCell().storeUint(code, 32);
const call = (sender, body, value = "0.05") => sender.send({ to: channel, value: toNano(value), body: body.endCell() });

await client.send({ to: channel, value: toNano("10"), init, body: beginCell().endCell(), bounce: false });
await call(client, op(OP.topUp).storeUint(blockchain.now + 2 * 86400, 32), "5");
blockchain.now += 600;
let newest = voucher(toNano("1.234567"));
await call(worker, op(OP.settle).storeBuffer(sign(newest.hash(), clientKey.secretKey)).storeRef(newest));
await call(worker, op(OP.settle).storeBuffer(Buffer.alloc(64)).storeRef(newest)); // throws and bounces
blockchain.now += 600;
const open = blockchain.snapshot();

await call(client, op(OP.requestClose));
await call(stranger, op(OP.finalize)); // too early
blockchain.now += 3700;
await call(stranger, op(OP.finalize));

await blockchain.loadFrom(open);
newest = voucher(toNano("3.5"));
const workersSignature = beginCell().storeBuffer(sign(newest.hash(), workerKey.secretKey)).endCell();
await call(
  worker,
  op(OP.coopClose).storeBuffer(sign(newest.hash(), clientKey.secretKey)).storeRef(workersSignature).storeRef(newest),
);

// Wallets deploy themselves with an external message and pay into the channel.
await blockchain.loadFrom(open);
const wallets = [
  WalletContractV5R1.create({ workchain: 0, publicKey: clientKey.publicKey, walletId: { networkGlobalId: -239 } }),
  WalletContractV4.create({ workchain: 0, publicKey: clientKey.publicKey }),
];
for (const wallet of wallets) {
  await client.send({ to: wallet.address, value: toNano("20"), bounce: false });
  blockchain.openContract(wallet);
  const topUp = op(OP.topUp).storeUint(blockchain.now + 3 * 86400, 32).endCell();
  const body = wallet.createTransfer({
    seqno: 0,
    secretKey: clientKey.secretKey,
    sendMode: SendMode.PAY_GAS_SEPARATELY,
    timeout: blockchain.now + 60,
    messages: [internal({ to: channel, value: toNano("2"), bounce: true, body: topUp })],
  });
  await blockchain.sendMessage(external({ to: wallet.address, init: wallet.init, body }));
}

const answer = await blockchain.runGetMethod(channel, "channel_state");
const { account } = await blockchain.getContract(channel);
const vectors = {
  emulator: "@ton/sandbox 0.41.0",
  config: readableConfig(),
  transactions,
  getter: {
    account: beginCell().store(storeShardAccount(account)).endCell().toBoc().toString("base64"),
    method: "channel_state",
    gas: Number(answer.gasUsed),
    stack: answer.stack.map((item) => (item.type === "int" ? item.value.toString() : item.type)),
  },
};
writeFileSync(join(here, "vectors.json"), `${JSON.stringify(vectors, null, 1)}\n`);
console.log(`${transactions.length} transactions, getter gas ${vectors.getter.gas}, stack ${vectors.getter.stack}`);
