"""Loading causal language models."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from tasks.contracts.errors import BadModel, BadRecipe
from tasks.finetune import program as finetune_program
from tasks.models import causal


class TestBase:
    def test_with_missing_weights_is_refused(self, lm_job, tiny_lm, tmp_path):
        broken = shutil.copytree(tiny_lm, tmp_path / "broken")
        weights = load_file(broken / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(BadModel, match="1 tensors missing"):
            finetune_program.make_task(lm_job(base=str(broken))).model()


class TestAdapter:
    def test_is_never_on_the_head(self, lm_job):
        with pytest.raises(BadRecipe, match="the output embedding"):
            finetune_program.make_task(lm_job(lora={"target_modules": ["lm_head"]})).model()
        names = [
            name for name, _ in finetune_program.make_task(lm_job()).model().named_parameters()
        ]
        assert not any("lm_head.lora" in name for name in names)
        assert sum("lora_A" in name for name in names) == 2 * 7


class TestNf4:
    def test_does_not_quantize_the_head(self, lm_job):
        model = finetune_program.make_task(lm_job(quantization="nf4")).model()
        assert type(model.get_output_embeddings()) is torch.nn.Linear
        assert "Linear4bit" in {type(m).__name__ for m in model.modules()}


class TestDecoderLayers:
    def test_are_found(self, tiny_lm):
        model = causal.load_causal(tiny_lm)
        assert len(causal.decoder_layers(model)) == 2


class TestGenerationConfig:
    def set(self, tiny_lm, **settings):
        model = causal.load_causal(tiny_lm)
        model.generation_config = GenerationConfig(**settings)
        causal.set_generation_config(model, [2], 0)
        return model

    @pytest.mark.parametrize(
        "settings",
        [
            {"do_sample": False, "temperature": 0.0},
            {"do_sample": False, "temperature": 0.9, "top_p": 0.5, "top_k": 3},
            {"temperature": 0.7},
        ],
    )
    def test_a_base_that_generates_greedily_still_does(self, tiny_lm, tmp_path, settings):
        model = self.set(tiny_lm, **settings)
        model.save_pretrained(tmp_path)
        shipped = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert not shipped.generation_config.do_sample
        assert shipped.generation_config.temperature in (None, 1.0)
        prompt = torch.tensor([[5, 6, 7]])
        answers = [shipped.generate(prompt, max_new_tokens=4).tolist() for _ in range(2)]
        assert answers[0] == answers[1]

    def test_a_base_that_samples_still_does(self, tiny_lm):
        config = self.set(tiny_lm, do_sample=True, temperature=0.6, top_p=0.9).generation_config
        assert (config.do_sample, config.temperature, config.top_p) == (True, 0.6, 0.9)
        assert (config.eos_token_id, config.pad_token_id) == (2, 0)
