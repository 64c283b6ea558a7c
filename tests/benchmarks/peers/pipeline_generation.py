"""transformers' text-generation pipeline, one conversation at a time, greedily."""

from __future__ import annotations

import json
import resource
import time

import common
import torch
from transformers import pipeline
from transformers.utils import logging


def main() -> None:
    """Answer all, and report."""
    spec = common.read_spec()
    logging.set_verbosity_error()
    write = pipeline("text-generation", model=spec["base"], dtype=torch.float32, device="cpu")
    options = {
        "do_sample": False,
        "max_new_tokens": spec["generate_tokens"],
        "return_full_text": False,
    }
    # What is only done once (threads, first allocations) belongs to neither side.
    write(spec["conversations"][0], **{**options, "max_new_tokens": 4})
    began, cpu_began = time.perf_counter(), time.process_time()
    answers = [
        write(each, **options)[0]["generated_text"].strip() for each in spec["conversations"]
    ]
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answers = [answer.strip() for answer in answers]
    facts = {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": round(peak)}
    print("\n" + json.dumps({"answers": answers, **facts}))


if __name__ == "__main__":
    main()
