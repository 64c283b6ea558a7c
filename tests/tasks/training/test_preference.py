"""Training on preferences (DPO)."""

import math

import pytest
import torch
import torch.nn.functional as F

from tasks.finetune import program as finetune_program
from tests.tasks.conftest import Notes
from tests.tasks.language_samples import randomize_adapter


class TestPreference:
    def test_loss_starts_at_ln_2(self, lm_job, set_up):
        _, model, data, trainer = set_up(lm_job(task="preference", micro_batch_tokens=60))
        loss = trainer.training_step(model, {"examples": [data[0], data[1], data[2]]})
        assert loss.item() == pytest.approx(math.log(2), abs=1e-5)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)

    def test_loss_equals_the_formula_of_the_paper(self, lm_job, set_up):
        _, model, data, trainer = set_up(lm_job(task="preference"))
        randomize_adapter(model)
        model.eval()
        pair = data[3]

        def likelihood(part):
            ids = torch.tensor(part.ids, dtype=torch.long)
            log_probs = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
            targets = [n for n in range(1, len(ids)) if part.loss_mask[n]]
            return sum(log_probs[n - 1, ids[n]] for n in targets)

        with torch.no_grad():
            own = [likelihood(part) for part in pair.parts]
            with model.disable_adapter():
                reference = [likelihood(part) for part in pair.parts]
        margin = 0.1 * ((own[0] - reference[0]) - (own[1] - reference[1]))
        loss = trainer.training_step(model, {"examples": [pair]})
        assert loss.item() == pytest.approx(-F.logsigmoid(margin).item(), abs=1e-5)

    def test_training_separates_the_answers(self, lm_job, bold_lm):
        job = lm_job(task="preference", base=bold_lm, training={"epochs": 3})
        result = finetune_program.main(job, Notes())
        assert set(result.metrics) == {"loss", "accuracy", "margin"}
        assert result.metrics["loss"] < 0.5 * math.log(2)
        assert result.metrics["accuracy"] == 1.0
        assert result.metrics["margin"] > 0

    def test_micro_batches_do_not_change_the_loss(self, lm_job, set_up):
        losses = []
        for budget in (30, 4096):
            job = lm_job(task="preference", micro_batch_tokens=budget)
            _, model, data, trainer = set_up(job)
            randomize_adapter(model)
            losses.append(
                trainer.training_step(model, {"examples": list(map(data.__getitem__, range(7)))})
            )
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
