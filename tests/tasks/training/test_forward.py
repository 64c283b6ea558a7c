"""The forward pass is correct for every architecture, packed or padded."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
)

from tests.tasks.language_samples import mean_loss


class TestArchitectures:
    @pytest.mark.parametrize(
        ("config", "packing"),
        [
            (GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=49152), True),
            # It caps its attention scores and its logits.
            (
                Gemma2Config(
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    num_key_value_heads=2,
                    head_dim=16,
                    vocab_size=49152,
                ),
                False,
            ),
        ],
    )
    def test_give_the_loss_of_each_example_alone(
        self, lm_job, set_up, tokenizer, tmp_path, config, packing
    ):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        task, model, data, trainer = set_up(lm_job(base=str(tmp_path / "base")))
        assert trainer.forward.packing == packing
        assert bool(task.warnings) != packing
        assert packing or "(UnsupportedAttention: softcap)" in task.warnings[0]
        examples = [data[number] for number in range(5)]
        loss = trainer.training_step(model, {"examples": examples})
        model.get_base_model().set_attn_implementation("eager")
        assert loss.item() == pytest.approx(mean_loss(model, examples).item(), rel=1e-5)
