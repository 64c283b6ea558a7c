"""Which step makes what, so that damage is repaired."""

# The step that is repeated if an artifact of this kind is damaged.
PRODUCERS = {
    "shard": "load",
    "dataset": "load",
    "base": "gguf",
    "tokenizer": "inspect",
    "shard-tokens": "tokenize",
    "tokens": "tokenize",
    "forecast": "forecast",
    "model": "finetune",
    "loss-check": "finetune",
    "gguf-check": "gguf-export",
    "gguf": "gguf-export",
    "scores": "evaluate",
    "comparisons": "llm-judge",
    "benchmarks": "benchmarks",
    "verdict": "gate",
}
