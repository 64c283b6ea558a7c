"""The recipe's sections on base model, adapter, training and plan."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
)

from tasks.contracts.base import Contract


class ModelRecipe(Contract):
    """Which base model to fine-tune, and in which form it is released."""

    uri: str = Field(
        min_length=1,
        title="Base model",
        description="hf://owner/name@revision; a folder; s3://bucket/prefix; package:module/path. "
        "In safetensors, or one GGUF file (language models).",
    )
    ship: Literal["merged", "adapter"] = Field(
        "merged",
        title="Release format",
        description="merged: one ordinary model that needs nothing else. adapter: only the adapter "
        "and the head, to be loaded on the same base model, which must be in safetensors.",
    )
    chat_template: str = Field(
        "",
        title="Chat template",
        description="For tokenizers without a chat template: chatml, or a Jinja template. It is "
        "released with the model.",
    )
    gguf: Literal["none", "f32", "f16", "bf16", "q8_0"] = Field(
        "none",
        title="GGUF export",
        description="For llama.cpp and Ollama: a GGUF file of this type ships beside the merged "
        "model.",
    )


class LoraRecipe(Contract):
    """The adapter (LoRA, Hu et al. 2021, arXiv:2106.09685)."""

    r: int = Field(16, ge=1, le=1024, title="Rank", description="Rank of the adapter matrices.")
    alpha: float = Field(
        32.0, gt=0, title="Alpha", description="The adapter's output is scaled by alpha / rank."
    )
    dropout: float = Field(
        0.05, ge=0, lt=1, title="Dropout", description="Dropout on the adapter's input."
    )
    target_modules: tuple[str, ...] = Field(
        ("all-linear",),
        min_length=1,
        title="Target modules",
        description="all-linear, or the last parts of module names: query, value, q_proj.",
    )
    modules_to_save: tuple[str, ...] = Field(
        (),
        title="Modules to train in full",
        description="In addition to the new classification head, which is always trained in full.",
    )
    rslora: bool = Field(
        False,
        title="Rank-stabilized",
        description="Scale the adapter by alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732).",
    )
    dora: bool = Field(
        False,
        title="Decomposed",
        description="Train magnitude and direction separately (DoRA, arXiv:2402.09353); slower.",
    )


class TrainingRecipe(Contract):
    """How long and how fast to train."""

    epochs: int = Field(
        3, ge=1, le=1000, title="Epochs", description="Passes over the training data."
    )
    batch_size: int = Field(
        16, ge=1, le=65536, title="Batch size", description="Examples per optimizer step."
    )
    learning_rate: float = Field(
        5e-4, gt=0, lt=1, title="Learning rate", description="The peak learning rate."
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", title="Schedule", description="How the learning rate decays after warm-up."
    )
    warmup: float = Field(
        0.06,
        ge=0,
        lt=1,
        title="Warm-up",
        description="Share of the steps in which the learning rate rises.",
    )
    weight_decay: float = Field(
        0.01, ge=0, lt=1, title="Weight decay", description="Weight decay of AdamW."
    )
    max_length: int = Field(
        256,
        ge=8,
        le=1_048_576,
        title="Maximum length",
        description="In tokens. Longer texts are truncated, and counted in the report.",
    )
    too_long: Literal["truncate", "drop", "split"] = Field(
        "truncate",
        title="Longer examples",
        description="For language models. truncate: cut at the end. drop: leave out. split: train "
        "on all of it, in parts. All are counted in the report.",
    )
    beta: float = Field(
        0.1,
        gt=0,
        le=10,
        title="Beta",
        description="For preference: how strongly the model is kept close to its base (DPO, "
        "arXiv:2305.18290).",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", title="Precision", description="auto: bf16 if the hardware supports it."
    )
    best_by: Literal["auto", "accuracy", "precision", "recall", "f1", "loss"] = Field(
        "auto",
        title="Best epoch by",
        description="The validation metric that selects the best epoch. auto: accuracy for "
        "classification, loss for language models.",
    )
    early_stopping: int = Field(
        0,
        ge=0,
        title="Early stopping",
        description="Number of epochs without improvement after which training stops. 0: never.",
    )
    seed: int = Field(
        17,
        ge=0,
        le=2**31 - 1,
        title="Seed",
        description="The same seed, data and code give the same model.",
    )
    time_limit_minutes: float = Field(
        720, gt=0, title="Time limit (minutes)", description="Training is stopped after this time."
    )

    checkpoint_minutes: float = Field(
        10,
        ge=0,
        title="Minutes between checkpoints",
        description="A training that is interrupted goes on from its newest checkpoint, on any "
        "worker. One is also kept at the end of each epoch and when the run is asked to stop. "
        "0: after each step.",
    )

    stall_minutes: float = Field(
        30,
        gt=0,
        title="Stall limit (minutes)",
        description="A training without a single step, batch or stage for this time hangs: it is "
        "ended, and goes on once from its newest checkpoint.",
    )

    cache_key_excludes = frozenset({"time_limit_minutes", "checkpoint_minutes", "stall_minutes"})


class PlanRecipe(Contract):
    """How the model is trained; each `auto` is chosen for the hardware and the model."""

    cache_key_excludes = frozenset({"micro_batch_tokens", "device_memory_gb", "pool"})

    pool: str = Field(
        "",
        title="Work pool",
        description="The Prefect work pool whose workers train and score, such as gpu. Empty: the "
        "worker that runs everything else.",
    )
    attention: Literal["auto", "eager", "sdpa", "packed", "flash_attention_2"] = Field(
        "auto",
        title="Attention",
        description="packed: for packed batches of language models.",
    )
    packing: Literal["auto", "on", "off"] = Field(
        "auto",
        title="Packing",
        description="For language models: several examples per row instead of padding; they do not "
        "attend to each other.",
    )
    checkpointing: Literal["auto", "on", "off"] = Field(
        "auto",
        title="Gradient checkpointing",
        description="Recomputes activations instead of storing them. auto: if memory is short.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        title="Compile",
        description="Use torch.compile. auto: on a GPU, for long trainings of language models.",
    )
    kernels: Literal["auto", "none", "liger"] = Field(
        "auto",
        title="Kernels",
        description="liger: fused kernels of the package liger-kernel (language models on CUDA). "
        "auto: liger if it is installed and supports the model.",
    )
    optimizer: Literal[
        "auto", "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"
    ] = Field("auto", title="Optimizer", description="adamw_8bit and paged_adamw_8bit need CUDA.")
    processes: int = Field(
        0,
        ge=0,
        le=1024,
        title="Processes",
        description="Training processes, one per device. 0: one per GPU, or one on a CPU.",
    )
    sharding: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        title="Sharding",
        description="With several processes. ddp: each holds the whole model. fsdp: the model is "
        "sharded across them.",
    )
    micro_batch_tokens: int = Field(
        0,
        ge=0,
        title="Micro-batch tokens",
        description="Tokens per forward pass. The batch size stays the same. 0: as many as fit.",
    )
    device_memory_gb: float = Field(
        0,
        ge=0,
        title="GPU memory (GB)",
        description="The memory that training must fit into. 0: the GPU's own memory.",
    )
