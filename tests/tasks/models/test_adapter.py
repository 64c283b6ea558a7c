"""The targets of an adapter."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.contracts.errors import BadRecipe
from tasks.finetune import program as finetune_program
from tasks.models import adapter


class TestTargets:
    def test_that_match_no_layer_are_refused(self, train_job):
        with pytest.raises(BadRecipe, match="no linear layer named q_proj") as caught:
            finetune_program.make_task(train_job(lora={"target_modules": ["q_proj"]})).model()
        assert "query" in caught.value.expected

    def test_are_all_linear_layers_except_the_head(self, train_job):
        model = finetune_program.make_task(train_job()).model()
        adapted = {n.rpartition(".lora_A")[0] for n, _ in model.named_parameters() if "lora_A" in n}
        assert len(adapted) == 2 * 6 + 1
        assert not any("classifier" in name for name in adapted)

    def test_that_peft_does_not_support_are_refused_by_its_reason(self, train_job, monkeypatch):
        def refuse(*_):
            raise ValueError("lora.ParamWrapper does not work with lora_dropout != 0.")

        monkeypatch.setattr("peft.get_peft_model", refuse)
        with pytest.raises(BadRecipe, match=r"^lora\.dropout.*Fix: set lora\.dropout to 0"):
            finetune_program.make_task(train_job()).model()


class TestLinearModules:
    """Of architectures in which not every linear layer can have an adapter."""

    SIZES = {  # noqa: RUF012
        "hidden_size": 32,
        "intermediate_size": 64,
        "moe_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_hidden_layers": 2,
        "vocab_size": 99,
        "n_routed_experts": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "pad_token_id": 0,
    }

    def model(self, kind):
        config = AutoConfig.for_model(kind, **self.SIZES)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)

    def test_leave_out_what_peft_takes_for_experts(self):
        model = self.model("glm4_moe")
        names = {name.rpartition(".")[2] for name in adapter.linear_modules(model, ["lm_head"])}
        assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}
        left_out = adapter.unadaptable_modules(model)
        assert {name.rpartition(".")[2] for name in left_out} == {
            "gate_proj",
            "up_proj",
            "down_proj",
        }

    def test_warn_of_what_is_left_out(self):
        (warning,) = adapter.unadaptable_warnings(self.model("glm4_moe"))
        assert "get no adapter (down_proj, gate_proj, up_proj)" in warning
        assert adapter.unadaptable_warnings(self.model("llama")) == []

    def test_leave_out_routers_of_experts(self):
        names = adapter.linear_modules(self.model("phimoe"), ["lm_head"])
        assert names and not any("router" in name for name in names)

    def test_of_an_ordinary_model_are_all(self):
        assert adapter.unadaptable_modules(self.model("llama")) == []
