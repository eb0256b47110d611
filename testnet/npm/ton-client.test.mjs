// The unmodified TonClient of @ton/ton against a local chain.
//
//   CHAIN_URL=http://127.0.0.1:PORT/api/v2 CHAIN_API_KEY=… npm test
//
// `cocoon testnet chain` prints both.
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Address, beginCell, Cell, comment, external, internal, SendMode, storeMessage, toNano } from "@ton/core";
import { getSecureRandomBytes, keyPairFromSeed } from "@ton/crypto";
import { TonClient, WalletContractV5R1 } from "@ton/ton";

const url = process.env.CHAIN_URL?.replace(/\/$/, "");
const apiKey = process.env.CHAIN_API_KEY;
assert.ok(url && apiKey, "set CHAIN_URL (ends in /api/v2) and CHAIN_API_KEY, as `cocoon testnet chain` prints them");
const client = new TonClient({ endpoint: `${url}/jsonRPC`, apiKey });

async function faucet(address, amount) {
  const response = await fetch(`${url.replace(/\/api\/v2$/, "")}/faucet`, {
    method: "POST",
    headers: { "content-type": "application/json", "x-api-key": apiKey },
    body: JSON.stringify({ address: address.toString(), amount: Number(amount) }),
  });
  assert.equal(response.status, 200, await response.text());
}

/// Polls until `read` returns something; the chain makes blocks a few times a second.
async function eventually(what, read) {
  for (let attempt = 0; attempt < 200; attempt++) {
    const value = await read();
    if (value !== undefined && value !== false) return value;
    await sleep(50);
  }
  assert.fail(`${what} did not happen within ten seconds`);
}

async function networkGlobalId() {
  const response = await fetch(`${url}/getConfigParam?config_id=19`, { headers: { "x-api-key": apiKey } });
  const { result } = await response.json();
  return Cell.fromBase64(result.config.bytes).beginParse().loadInt(32);
}

async function newWallet() {
  const keys = keyPairFromSeed(await getSecureRandomBytes(32));
  const walletId = { networkGlobalId: await networkGlobalId() };
  const contract = WalletContractV5R1.create({ workchain: 0, publicKey: keys.publicKey, walletId });
  return { ...keys, contract, opened: client.open(contract) };
}

test("the chain is nobody else's", async () => {
  assert.ok(![-239, -3].includes(await networkGlobalId()));
  const info = await client.getMasterchainInfo();
  assert.equal(info.workchain, -1);
  assert.equal(info.initSeqno, 0);
  const shards = await client.getWorkchainShards(info.latestSeqno);
  assert.deepEqual(shards.map((shard) => shard.workchain), [0]);
});

test("an account that nobody used has no coins and no history", async () => {
  const { contract } = await newWallet();
  assert.equal(await client.getBalance(contract.address), 0n);
  const state = await client.getContractState(contract.address);
  assert.equal(state.state, "uninitialized");
  assert.equal(state.lastTransaction, null);
  assert.deepEqual(await client.getTransactions(contract.address, { limit: 10 }), []);
});

test("a wallet is funded, deploys itself, pays, and is read back", async () => {
  const alice = await newWallet();
  const bob = await newWallet();
  await faucet(alice.contract.address, toNano("5"));
  const funded = await eventually("the grant", async () => (await client.getBalance(alice.contract.address)) || undefined);
  assert.equal(funded, toNano("5"));
  assert.equal(await alice.opened.getSeqno(), 0);

  const transfer = {
    seqno: 0,
    secretKey: alice.secretKey,
    sendMode: SendMode.PAY_GAS_SEPARATELY,
    messages: [internal({ to: bob.contract.address, value: toNano("1.5"), bounce: false, body: comment("for tokens") })],
  };
  const body = alice.contract.createTransfer(transfer);
  const estimate = await client.estimateExternalMessageFee(alice.contract.address, {
    body,
    initCode: alice.contract.init.code,
    initData: alice.contract.init.data,
    ignoreSignature: true,
  });
  assert.ok(estimate.source_fees.gas_fee > 0);

  await alice.opened.sendTransfer(transfer);
  await eventually("the transfer", async () => (await alice.opened.getSeqno()) === 1);
  assert.equal(await eventually("the payment", async () => (await client.getBalance(bob.contract.address)) || undefined), toNano("1.5"));
  assert.ok(await client.isContractDeployed(alice.contract.address));

  // A get-method, through the wallet class and by name.
  const { stack, gas_used } = await client.runMethod(alice.contract.address, "seqno");
  assert.equal(stack.readNumber(), 1);
  assert.ok(gas_used > 0);
  const extensions = await client.runMethod(alice.contract.address, "get_extensions");
  assert.equal(extensions.stack.readCellOpt(), null);
  const missing = await client.runMethodWithError(alice.contract.address, "nothing_of_this_name");
  assert.equal(missing.exit_code, 11);

  // History: newest first, page by page, and followed from message to transaction.
  const [sent, received] = await client.getTransactions(alice.contract.address, { limit: 10 });
  assert.equal(sent.inMessage.info.type, "external-in");
  assert.equal(received.inMessage.info.value.coins, toNano("5"));
  assert.equal(sent.description.computePhase.exitCode, 0);
  assert.equal(sent.outMessagesCount, 1);
  const page = await client.getTransactions(alice.contract.address, {
    limit: 1,
    lt: sent.lt.toString(),
    hash: sent.hash().toString("base64"),
  });
  assert.equal(page[0].hash().toString("hex"), received.hash().toString("hex"));
  const again = await client.getTransaction(alice.contract.address, sent.lt.toString(), sent.hash().toString("base64"));
  assert.equal(again.hash().toString("hex"), sent.hash().toString("hex"));
  const message = sent.outMessages.get(0);
  const result = await client.tryLocateResultTx(alice.contract.address, bob.contract.address, message.info.createdLt.toString());
  assert.equal(result.inMessage.body.beginParse().skip(32).loadStringTail(), "for tokens");
  const source = await client.tryLocateSourceTx(alice.contract.address, bob.contract.address, message.info.createdLt.toString());
  assert.equal(source.lt, sent.lt);

  // What was charged is what was estimated, but for rounding and seconds of storage.
  const paid = toNano("5") - toNano("1.5") - (await client.getBalance(alice.contract.address));
  const { in_fwd_fee, storage_fee, gas_fee, fwd_fee } = estimate.source_fees;
  assert.ok(Math.abs(Number(paid) - (in_fwd_fee + storage_fee + gas_fee + fwd_fee)) < 100, `${paid} nanoTON were paid`);

  // The transaction is listed in its block.
  const info = await client.getMasterchainInfo();
  let listed = [];
  for (let seqno = info.latestSeqno; seqno > 0 && listed.length === 0; seqno--) {
    const transactions = await client.getShardTransactions(0, seqno, "-9223372036854775808");
    listed = transactions.filter((entry) => entry.lt === sent.lt.toString());
  }
  assert.ok(listed[0].account.equals(alice.contract.address));
});

test("a replayed or malformed message is refused with toncenter's error", async () => {
  const { contract } = await newWallet();
  const refused = (promise) => promise.then(() => assert.fail("accepted"), (error) => error.response);
  const message = beginCell().store(storeMessage(external({ to: contract.address, body: beginCell().endCell() }))).endCell();
  const response = await refused(client.sendFile(message.toBoc()));
  assert.equal(response.status, 500);
  assert.equal(response.data.ok, false);
  assert.match(response.data.error, /did not accept/);
  assert.equal((await refused(client.sendFile(Buffer.from("nonsense")))).status, 422);
});

test("the key is required", async () => {
  const stranger = new TonClient({ endpoint: `${url}/jsonRPC`, apiKey: "wrong" });
  await assert.rejects(stranger.getBalance(Address.parse(`0:${"0".repeat(64)}`)), (error) => error.response.status === 401);
});
