"""Training classifiers."""

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.contracts.errors import TrainingDiverged
from tasks.finetune import program as finetune_program
from tests.tasks.conftest import Notes


class TestPrecision:
    def test_bf16_trains_adapter_and_head_in_fp32(self, train_job):
        plan = {"precision": "bf16"}
        model = finetune_program.make_task(train_job(plan=plan, quantization="none")).model()
        trained = {p.dtype for p in model.parameters() if p.requires_grad}
        frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
        assert (trained, frozen) == ({torch.float32}, {torch.bfloat16})
        job = train_job(plan=plan)
        assert math.isfinite(finetune_program.main(job, Notes()).metrics["loss"])


class TestInfiniteLoss:
    def test_stops_training_at_once(self, train_job, tiny_base, tmp_path):
        broken = shutil.copytree(tiny_base, tmp_path / "broken")
        weights = load_file(broken / "model.safetensors")
        weights["embeddings.LayerNorm.bias"][0] = float("inf")
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(TrainingDiverged) as caught:
            finetune_program.main(train_job(base=str(broken)), Notes())
        assert caught.value.where == "training.learning_rate"
        assert caught.value.found == "loss nan at step 1"
