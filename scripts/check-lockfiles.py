#!/usr/bin/env python3
"""Checks that two Cargo.lock files agree on the packages they share.

The simulator runs the real swarms, so it must run the same versions of everything that the network runs.
It patches a few crates on purpose; those are listed here, with nothing else.
"""

import sys
import tomllib

# Replaced in the simulator by shims over virtual time and seeded entropy.
PATCHED = {"futures-timer", "getrandom"}


def packages(path):
    with open(path, "rb") as file:
        found = {}
        for package in tomllib.load(file)["package"]:
            if package.get("source", "").startswith("registry"):
                found.setdefault(package["name"], set()).add(package["version"])
        return found


def main(first, second):
    a, b = packages(first), packages(second)
    shared = (a.keys() & b.keys()) - PATCHED
    # A version that only one side has is a disagreement only if that side has none of the other's.
    bad = {name: (a[name], b[name]) for name in shared if not (a[name] >= b[name] or b[name] >= a[name])}
    for name, (here, there) in sorted(bad.items()):
        print(f"{name}: {first} has {sorted(here)}, {second} has {sorted(there)}", file=sys.stderr)
    if bad:
        print("run `cargo update -p NAME --precise VERSION` in one of the workspaces", file=sys.stderr)
        return 1
    print(f"{len(shared)} shared packages agree")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
