// Compiles channel.tolk to channel.boc and channel.json.
//
//   npm ci && node build.mjs            writes both files
//   npm ci && node build.mjs --check    compiles and compares; exit code 1 if they differ
//
// Every channel's address contains the hash of this code, so a changed compiler or source makes a
// different contract: all open channels stay with the old one. The compiler is therefore pinned.
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { dirname, join } from "node:path";
import { runTolkCompiler, getTolkCompilerVersion } from "@ton/tolk-js";

const here = dirname(fileURLToPath(import.meta.url));
const file = (name) => join(here, name);

const result = await runTolkCompiler({
  entrypointFileName: "channel.tolk",
  fsReadCallback: (path) => readFileSync(file(path), "utf8"),
});
if (result.status === "error") {
  console.error(result.message);
  process.exit(1);
}

const boc = Buffer.from(result.codeBoc64, "base64");
const json =
  JSON.stringify(
    {
      code_hash: result.codeHashHex.toLowerCase(),
      compiler: `tolk ${await getTolkCompilerVersion()}`,
    },
    null,
    2,
  ) + "\n";

if (process.argv.includes("--check")) {
  const same = readFileSync(file("channel.boc")).equals(boc) && readFileSync(file("channel.json"), "utf8") === json;
  if (!same) {
    console.error("channel.boc or channel.json is not what channel.tolk compiles to; run `node build.mjs`");
    process.exit(1);
  }
  console.log(`channel.boc is what channel.tolk compiles to (${boc.length} bytes, ${result.codeHashHex})`);
} else {
  writeFileSync(file("channel.boc"), boc);
  writeFileSync(file("channel.json"), json);
  console.log(`${boc.length} bytes, code hash ${result.codeHashHex}`);
}
