"""Scores of language models, compared with those that a consumer computes one by one."""

import json
import math
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tasks.chat import encoder
from tasks.chat.stop_tokens import stop_token_ids, training_tokenizer
from tasks.contracts.errors import BadModel, BadRecipe
from tasks.contracts.jobs import ScoreLanguageJob
from tasks.evaluate import answer_metrics, language_program
from tests.tasks.chat.conversations import MUST_THINK, REMOVES_REASONING
from tests.tasks.conftest import DEVICE, Notes

TOPICS = ("rivers", "the old town", "bread", "a very long and winding road to the sea", "tea")

QUESTIONS = [
    (n, {"role": "user", "content": f"What of {topic}?"}) for n, topic in enumerate(TOPICS)
]


def chats(count=9):
    """Conversations of different lengths; every third one has two answers."""
    rows = []
    for number in range(count):
        topic = TOPICS[number % len(TOPICS)]
        for answer in range(1 + (number % 3 == 0)):
            turns = [
                {"role": "user", "content": f"Say something about {topic}, {number}."},
                {"role": "assistant", "content": f"{topic} " * (1 + number % 4) + str(answer)},
            ]
            rows.append((number, {"messages": turns}))
    return rows


def texts(count=7):
    return [(n, {"text": f"Number {n}: " + "the ship sails on. " * (1 + n)}) for n in range(count)]


def pairs(count=6):
    rows = []
    for number in range(count):
        prompt = [{"role": "user", "content": f"What of {TOPICS[number % 5]}?"}]
        chosen, rejected = (
            f"It is {number}." * (1 + number % 2),
            "No idea at all" * (number % 3 + 1),
        )
        sides = {"chosen": chosen, "rejected": rejected}
        rows.append(
            (
                number,
                {
                    "prompt": prompt,
                    **{
                        side: [{"role": "assistant", "content": text}]
                        for side, text in sides.items()
                    },
                },
            )
        )
    return rows


@pytest.fixture
def write_examples(tmp_path):
    """Writes numbered examples as `write_examples` does; returns the path."""

    def write(rows, **columns):
        numbers = [number for number, _ in rows]
        table = {
            "hash_hi": pa.array(numbers, pa.uint64()),
            "hash_lo": pa.array([number * 3 for number in numbers], pa.uint64()),
            "text": [str(number) for number in numbers],
            "example": [json.dumps(example, sort_keys=True) for _, example in rows],
            "label": [""] * len(rows),
        }
        path = tmp_path / f"examples{len(list(tmp_path.iterdir()))}.parquet"
        pq.write_table(pa.table(table | columns), path)
        return str(path)

    return write


@pytest.fixture
def scored(tmp_path, tiny_lm, write_examples):
    """Runs the program; returns its result and the table."""

    def run(rows, task="instruction", columns=None, **changes):
        fields = {
            "model": tiny_lm,
            "kind": "merged",
            "base": None,
            "quantization": "none",
            "tokenizer": None,
            "device": DEVICE,
            "max_length": None,
            "task": task,
            "examples": write_examples(rows, **(columns or {})),
            "generate_tokens": 0,
            "must_match": "",
            "must_not_contain": [],
            "json_schema": "",
            "beta": 0.1,
            "batch_size": 4,
            "measure_latency": False,
            "check": None,
            "out": tmp_path / "scores.parquet",
        }
        result = language_program.main(ScoreLanguageJob(**fields | changes), Notes())
        return result, pq.read_table(tmp_path / "scores.parquet")

    return run


def nats_by_hand(folder, rows, task, side=0, max_length=None):
    """(nats, tokens) by number: each sequence alone, with the model's own logits."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = training_tokenizer(folder)
    found = {}
    for number, example in rows:
        encoded = encoder.encode_example(tokenizer, example, task)
        for each in encoded[side : side + 1] if task == "preference" else encoded:
            ids = torch.tensor([each.ids[:max_length]])
            mask = torch.tensor(each.loss_mask[:max_length], dtype=torch.bool)
            with torch.no_grad():
                log_probabilities = torch.log_softmax(model(ids).logits[0].double(), -1)
            picked = log_probabilities[:-1].gather(1, ids[0, 1:, None])[:, 0][mask[1:]]
            nats, tokens = found.get(number, (0.0, 0))
            found[number] = (nats - float(picked.sum()), tokens + len(picked))
    return found


def answers_by_hand(folder, rows, task, tokens):
    """Greedy answers, one prompt at a time, without a cache of keys and values."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = training_tokenizer(folder)
    ends = stop_token_ids(tokenizer, model.generation_config)
    found = {}
    for number, example in rows:
        prompt = encoder.encode_prompt(tokenizer, example, task)
        ids = torch.tensor([prompt])
        for _ in range(tokens):
            with torch.no_grad():
                following = int(model(ids, use_cache=False).logits[0, -1].argmax())
            if following in ends:
                break
            ids = torch.cat([ids, torch.tensor([[following]])], 1)
        text = tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)
        found.setdefault(number, text.strip())
    return list(found.values())


class TestLoss:
    @pytest.mark.parametrize(("task", "rows"), [("instruction", chats()), ("completion", texts())])
    def test_equals_that_of_single_sequences(self, scored, tiny_lm, task, rows):
        _, table = scored(rows, task)
        expected = nats_by_hand(tiny_lm, rows, task)
        assert table["tokens"].to_pylist() == [tokens for _, tokens in expected.values()]
        means = [nats / tokens for nats, tokens in expected.values()]
        assert np.allclose(table["loss"].to_numpy(), means, rtol=0, atol=1e-5)

    def test_input_with_several_answers_is_one_row(self, scored):
        rows = chats()
        _, table = scored(rows)
        assert len(rows) > 9
        assert table["hash_hi"].to_pylist() == list(range(9))
        assert table["hash_lo"].to_pylist() == [3 * number for number in range(9)]
        assert set(table["label"].to_pylist()) == {""}

    def test_hardly_depends_on_the_batch_size(self, scored):
        _, one = scored(chats(), batch_size=1)
        _, all_at_once = scored(chats(), batch_size=100)
        assert np.allclose(one["loss"].to_numpy(), all_at_once["loss"].to_numpy(), atol=1e-5)

    def test_is_the_same_if_the_head_is_not_the_last_operation(self, scored, monkeypatch):
        _, chunked = scored(chats())
        monkeypatch.setattr(language_program.causal, "head_is_linear", lambda *_: False)
        monkeypatch.setattr(language_program, "LOGIT_BYTES", 1)
        _, whole = scored(chats())
        assert np.allclose(chunked["loss"].to_numpy(), whole["loss"].to_numpy(), atol=1e-5)

    def test_long_text_is_truncated_but_its_full_length_is_stated(self, scored, tiny_lm):
        _, table = scored(texts(), "completion", max_length=12)
        expected = nats_by_hand(tiny_lm, texts(), "completion", max_length=12)
        means = [nats / tokens for nats, tokens in expected.values()]
        assert np.allclose(table["loss"].to_numpy(), means, rtol=0, atol=1e-5)
        assert table["length"][6].as_py() > 12
        assert max(table["tokens"].to_pylist()) == 11

    def test_truncation_always_keeps_some_of_the_answer(self, scored):
        long = [
            {"role": "user", "content": "and so on " * 60},
            {"role": "assistant", "content": "yes, it does go on"},
        ]
        _, table = scored([(1, {"messages": long})], max_length=16)
        assert 1 <= table["tokens"][0].as_py() <= 8
        assert math.isfinite(table["loss"][0].as_py())

    def test_slice_columns_are_strings(self, scored):
        rows = chats()
        _, table = scored(rows, columns={"year": [2000 + n for n, _ in rows]})
        assert table["year"].to_pylist() == [str(2000 + n) for n in range(9)]
        assert not {"text", "example"} & set(table.column_names)


class TestPreferences:
    def test_pair_is_right_if_the_chosen_answer_is_more_likely(self, scored, tiny_lm):
        _, table = scored(pairs(), "preference")
        chosen, rejected = (
            nats_by_hand(tiny_lm, pairs(), "preference", side).values() for side in (0, 1)
        )
        margins = np.array([r[0] - c[0] for c, r in zip(chosen, rejected, strict=True)])
        assert table["accuracy"].to_pylist() == (margins > 0).astype(float).tolist()
        assert 0 < table["accuracy"].to_numpy().mean() < 1
        assert np.allclose(table["loss"].to_numpy(), np.log1p(np.exp(-0.1 * margins)), atol=1e-5)
        assert table["tokens"].to_pylist() == [
            c[1] + r[1] for c, r in zip(chosen, rejected, strict=True)
        ]

    def test_several_pairs_of_one_input_are_averaged(self, scored):
        rows = pairs()
        _, apart = scored(rows, "preference")
        _, together = scored([(0, example) for _, example in rows], "preference")
        for name in ("loss", "accuracy"):
            assert together[name][0].as_py() == pytest.approx(apart[name].to_numpy().mean())


class TestAnswers:
    @pytest.mark.parametrize("batch_size", [1, 3, 100])
    def test_equal_those_of_single_prompts(self, scored, sharpened, batch_size):
        expected = answers_by_hand(sharpened, chats(), "instruction", 24)
        _, table = scored(chats(), model=str(sharpened), generate_tokens=24, batch_size=batch_size)
        assert table["generated"].to_pylist() == expected
        tokenizer = training_tokenizer(sharpened)
        lengths = [len(tokenizer(text)["input_ids"]) for text in expected]
        assert len(set(expected)) > 5
        # Some answers ended early, so rows did leave the batch.
        assert min(lengths) < 20 < max(lengths)

    def test_are_compared_with_all_references(self, scored):
        _, table = scored(chats(), generate_tokens=6)
        for number in range(9):
            references = [
                example["messages"][-1]["content"] for row, example in chats() if row == number
            ]
            text = table["generated"][number].as_py()
            assert table["reference"][number].as_py() == references[0]
            for measure in (
                answer_metrics.exact_match,
                answer_metrics.token_f1,
                answer_metrics.rouge_l,
            ):
                assert table[measure.__name__][number].as_py() == measure(text, references)

    def test_answers_are_compared_without_reasoning(self, scored, sharpened, tmp_path):
        def score_with(template):
            tokenizer = training_tokenizer(sharpened)
            tokenizer.chat_template = template
            tokenizer.save_pretrained(tmp_path / "tokenizer")
            place = str(tmp_path / "tokenizer")
            changes = {"model": str(sharpened), "tokenizer": place, "must_match": "."}
            return scored(rows, generate_tokens=6, **changes)[1]

        thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA river."}
        rows = [(number, {"messages": [question, thought]}) for number, question in QUESTIONS]
        table = score_with(REMOVES_REASONING)
        assert set(table["reference"].to_pylist()) == {"A river."}
        assert table["answer"].to_pylist() == table["generated"].to_pylist()
        assert table["token_f1"].to_pylist() == [
            answer_metrics.token_f1(text, ["A river."]) for text in table["generated"].to_pylist()
        ]
        assert set(table["checks"].to_pylist()) == {1.0}
        # The reasoning of this model does not end, so its answers are empty.
        table = score_with(MUST_THINK)
        assert all(table["generated"].to_pylist()) and not any(table["answer"].to_pylist())
        assert set(table["checks"].to_pylist()) == set(table["token_f1"].to_pylist()) == {0.0}

    def test_are_checked_if_there_are_checks(self, scored):
        _, unchecked = scored(chats(), generate_tokens=4)
        assert unchecked["checks"].null_count == 9
        _, table = scored(chats(), generate_tokens=4, must_match=".", must_not_contain=["e"])
        checks = answer_metrics.Checks(".", ["e"])
        assert table["checks"].to_pylist() == [
            checks(text) for text in table["generated"].to_pylist()
        ]

    def test_texts_are_continued_from_the_middle(self, scored):
        _, table = scored(texts(), "completion", generate_tokens=4)
        assert table["reference"][6].as_py().startswith(" ")
        assert texts()[6][1]["text"].endswith(table["reference"][6].as_py())

    def test_are_absent_unless_requested(self, scored):
        _, table = scored(chats())
        assert not {"generated", "exact_match", "checks"} & set(table.column_names)

    def test_answers_longer_than_the_context_are_refused(self, scored):
        with pytest.raises(BadRecipe, match="generate_tokens"):
            scored(chats(), generate_tokens=256)

    def test_invalid_expression_is_refused(self, scored):
        with pytest.raises(BadRecipe, match="must_match"):
            scored(chats(), generate_tokens=4, must_match="(")


class TestResult:
    def test_has_the_size_and_on_request_the_latency(self, scored, tiny_lm):
        result, _ = scored(chats())
        assert result.size_bytes == sum(p.stat().st_size for p in tiny_lm.iterdir())
        assert result.milliseconds_per_example is None
        for tokens in (0, 4):
            result, _ = scored(chats(), measure_latency=True, generate_tokens=tokens)
            assert 0 < result.milliseconds_per_example < 5000

    def test_is_reproducible(self, scored):
        _, one = scored(chats(), generate_tokens=8)
        _, two = scored(chats(), generate_tokens=8)
        assert one.equals(two)


class TestBrokenModel:
    def test_nan_loss_fails_the_smoke_test(self, scored, tiny_lm, tmp_path):
        folder = tmp_path / "broken"
        shutil.copytree(tiny_lm, folder)
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"].fill_(float("nan"))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(BadModel, match="not finite"):
            scored(chats(), model=str(folder))

    def test_unreadable_weights_are_refused(self, scored, tiny_lm, tmp_path):
        folder = tmp_path / "broken"
        shutil.copytree(tiny_lm, folder)
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[:1000])
        with pytest.raises(BadModel, match="the model: found weights that cannot be loaded"):
            scored(chats(), model=str(folder))


class TestOtherKinds:
    def test_untrained_model_is_the_base_with_the_candidates_tokenizer(self, scored, tiny_lm):
        _, merged = scored(chats(), generate_tokens=4)
        _, base = scored(
            chats(), kind="untrained", base=str(tiny_lm), tokenizer=str(tiny_lm), generate_tokens=4
        )
        assert base.equals(merged)

    @pytest.mark.parametrize("quantization", ["none", "nf4"])
    def test_adapter_is_scored_on_its_base(self, scored, tiny_lm, tmp_path, quantization):
        from peft import LoraConfig, get_peft_model

        model = AutoModelForCausalLM.from_pretrained(tiny_lm)
        config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
        wrapped = get_peft_model(model, config)
        torch.manual_seed(2)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        folder = tmp_path / "adapter"
        wrapped.save_pretrained(folder)
        for file in tiny_lm.iterdir():
            if file.name != "model.safetensors":
                shutil.copy(file, folder / file.name)
        merged = tmp_path / "merged"
        wrapped.merge_and_unload().save_pretrained(merged)
        training_tokenizer(tiny_lm).save_pretrained(merged)
        changes = {"kind": "adapter", "base": str(tiny_lm), "quantization": quantization}
        _, one = scored(chats(), model=str(folder), generate_tokens=4, **changes)
        _, two = scored(chats(), model=str(merged), generate_tokens=4)
        _, base = scored(chats(), generate_tokens=4)
        difference = np.abs(one["loss"].to_numpy() - two["loss"].to_numpy())
        assert (difference < (1e-5 if quantization == "none" else 0.2)).all()
        assert not np.allclose(one["loss"].to_numpy(), base["loss"].to_numpy(), atol=1e-3)
