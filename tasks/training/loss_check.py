"""A few validation examples and the loss that training ended with on them.

The scoring program computes the same loss with the files that ship: what is released must be what
was trained. The examples are kept as training had them, in tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

CHECK_EXAMPLES = 64
"""The first validation examples by hash, which do not change while data grows by little."""


def write_classifications(validation: Any, file: Path) -> None:
    """Write the examples of a classifier: `input_ids`, `token_type_ids` if there are any, and
    `labels` (the label's id).

    Args:
        validation: `tasks.training.classification_batches.Examples`.
        file: The Parquet file to write.
    """
    examples = [validation[number] for number in range(min(CHECK_EXAMPLES, len(validation)))]
    _write({name: [each[name] for each in examples] for name in examples[0]}, file)


def write_sequences(validation: Any, file: Path) -> None:
    """Write the sequences of a language model's examples: `input_ids` and `loss_mask`.

    Args:
        validation: `tasks.training.language_batches.TokenExamples`.
        file: The Parquet file to write.
    """
    examples = [validation[number] for number in range(min(CHECK_EXAMPLES, len(validation)))]
    parts = [part for example in examples for part in example.parts]
    _write(
        {
            "input_ids": [part.ids for part in parts],
            "loss_mask": [part.loss_mask for part in parts],
        },
        file,
    )


def target_sums(
    nats: torch.Tensor, sequence_ids: torch.Tensor, numbers: list[int], parts: int
) -> torch.Tensor:
    """The loss of the examples that are checked, of one batch.

    Args:
        nats: The loss of each target token.
        sequence_ids: The sequence of the batch that each belongs to.
        numbers: The examples' indexes in the split.
        parts: Sequences per example.

    Returns:
        Sum of the losses and number of target tokens, float64, shape (2,).
    """
    checked = torch.tensor(numbers, device=nats.device) < CHECK_EXAMPLES
    of_token = checked[sequence_ids // parts]
    return torch.stack([nats[of_token].double().sum(), of_token.double().sum()])


def _write(columns: dict[str, list[Any]], file: Path) -> None:
    table = {
        name: pa.array(
            [np.asarray(each).tolist() for each in values],
            pa.int64() if name == "labels" else pa.list_(pa.int32()),
        )
        for name, values in columns.items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), file, write_statistics=False)
