"""Runs the benchmarks, one after another: `python -m tests.benchmarks [--only NAME]`."""

from __future__ import annotations

import argparse
import subprocess
import sys

from tests.benchmarks.measure import ROOT

# The short ones first; each has the machine to itself.
NAMES = (
    "gate_simulation",
    "preparation",
    "cached_rerun",
    "whole_flow",
    "generation",
    "language_training",
)
NEEDS_A_GPU = ("gpu_language",)


def main() -> None:
    """Run all, or the one that was asked for; the exit status is that of the first that failed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--only", choices=(*NAMES, *NEEDS_A_GPU), help="Run this one.")
    only = arguments.parse_args().only
    for name in [only] if only else NAMES:
        print(f"== {name}", flush=True)
        module = f"tests.benchmarks.{name}"
        status = subprocess.run([sys.executable, "-m", module], cwd=ROOT).returncode
        if status:
            sys.exit(status)


if __name__ == "__main__":
    main()
