"""The targets of an adapter."""

import pytest

from tasks.contracts.errors import BadRecipe
from tasks.finetune import program as finetune_program


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
