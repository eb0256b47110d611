"""Cocoon, llama.cpp and mistral.rs on the same checkpoint, the same machine and the same day.

    python checkpoint.py DIR && python compare.py DIR path/to/cocoon [rounds]

Each engine runs in a process of its own, one after the other, for several rounds: a machine that others use too
then treats them alike. The best of all rounds counts. Needs what checkpoint.py needs, and xllamacpp and
mistralrs. "int8" is llama.cpp's Q8_0, the same as mistral.rs's in-situ quantisation, and `--precision int8`.
"""

import json
import os
import subprocess
import sys

PROMPT, TOKENS = 641, 100
TEXT = "def f(x): return x + 1 # "


def cocoon(folder, binary, precision):
    command = [binary, "bench", "inference", f"{folder}/hf", "--precision", precision, "--json"]
    command += ["--prompt", str(PROMPT), "--tokens", str(TOKENS), "--repeat", "3"]
    row = json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL))["rows"][0]
    return {
        "prefill": row["prefill"]["best"],
        "decode": row["decode"]["best"],
        "decode after prompt": row["decode_after_prompt"]["best"],
    }


def llama_cpp(folder, precision):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = f"{folder}/{'f32' if precision == 'f32' else 'q8_0'}.gguf"
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 2048, 1, 0, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
    server = xllamacpp.Server(params)

    def ask(repeat):
        request = {
            "prompt": TEXT * repeat, "n_predict": TOKENS, "max_tokens": TOKENS, "temperature": 0.0,
            "cache_prompt": False, "ignore_eos": True, "timings_per_token": True,
        }
        answer = server.handle_completions(request)
        return answer.get("timings", answer)

    short, long = ask(2), ask(64)
    return {
        "prefill": long["prompt_per_second"],
        "decode": short["predicted_per_second"],
        "decode after prompt": long["predicted_per_second"],
    }


def mistral_rs(folder, precision):
    from mistralrs import CompletionRequest, ModelDType, Runner, Which

    runner = Runner(
        which=Which.Plain(model_id=f"{folder}/hf", tokenizer_json=None, dtype=ModelDType.F32),
        in_situ_quant=None if precision == "f32" else "Q8_0",
    )

    def ask(tokens, repeat):
        request = CompletionRequest(
            model="default", prompt=TEXT * repeat, max_tokens=tokens, temperature=0.0, stop_seqs=None
        )
        return runner.send_completion_request(request).usage

    ask(4, 2)
    short, long = ask(TOKENS, 2), ask(TOKENS, 64)
    return {
        "prefill": long.avg_prompt_tok_per_sec,
        "decode": short.avg_compl_tok_per_sec,
        "decode after prompt": long.avg_compl_tok_per_sec,
    }


PEERS = {"llama.cpp": llama_cpp, "mistral.rs": mistral_rs}


def apart(folder, name, precision):
    """A peer in a process of its own, whose last line is its result."""
    command = [sys.executable, __file__, folder, name, precision, "--one"]
    out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if out.returncode != 0:
        sys.exit(f"{name} failed with status {out.returncode}; run: {' '.join(command)}")
    return json.loads(out.stdout.splitlines()[-1])


def main():
    if sys.argv[-1] == "--one":
        folder, name, precision = sys.argv[1:4]
        print(json.dumps(PEERS[name](folder, precision)))
        return
    folder, binary = sys.argv[1:3]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    best = {}
    for _ in range(rounds):
        for precision in ("f32", "int8"):
            found = {"cocoon": cocoon(folder, binary, precision)}
            found |= {name: apart(folder, name, precision) for name in PEERS}
            for name, speeds in found.items():
                for what, speed in speeds.items():
                    key = (precision, what, name)
                    best[key] = max(best.get(key, 0), speed)
    print(f"best of {rounds} rounds, tokens/s; prompt of {PROMPT} tokens, answer of {TOKENS}, {os.cpu_count()} cores")
    for precision in ("f32", "int8"):
        for what in ("prefill", "decode", "decode after prompt"):
            ours = best[precision, what, "cocoon"]
            peers = {name: best[precision, what, name] for name in PEERS}
            shown = ", ".join(f"{name} {speed:.0f}" for name, speed in peers.items())
            ratio = ours / max(peers.values())
            print(f"{precision:5} {what:20} cocoon {ours:.0f}, {shown}; ratio to the faster {ratio:.2f}")


if __name__ == "__main__":
    main()
