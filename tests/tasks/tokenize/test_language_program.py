"""Token ids of whole shards: what is kept of each row, and what happens to long examples."""

import json

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.chat.encoder import encode_example
from tasks.chat.stop_tokens import training_tokenizer
from tasks.contracts.errors import BadData, BadModel, BadRecipe
from tasks.contracts.jobs import Done, RowShard, TokenizeLanguageJob
from tasks.tokenize.language_program import main
from tests.tasks.conftest import Notes

TALK = [
    {"role": "user", "content": "What is the capital of France? Think well, and then say it."},
    {"role": "assistant", "content": "The capital of France is Paris, on the Seine."},
    {"role": "user", "content": "And of Italy?"},
    {"role": "assistant", "content": "That is Rome."},
]
SHORT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
PAIR = {"prompt": TALK[:1], "chosen": TALK[1:2], "rejected": SHORT[1:]}


@pytest.fixture(scope="module")
def tokenizer(tiny_lm):
    return training_tokenizer(tiny_lm)


@pytest.fixture
def tokenize(tiny_lm, tmp_path):
    """Tokenize examples as one shard; returns its folder."""

    def tokenize(examples, task="instruction", max_length=256, too_long="truncate"):
        rows = tmp_path / "rows.parquet"
        count = len(examples)
        columns = {
            "text": pa.array([f"input {number}" for number in range(count)], pa.string()),
            "example": pa.array([orjson.dumps(each).decode() for each in examples], pa.string()),
            "label": pa.array([""] * count, pa.string()),
            "hash_hi": pa.array([(7 * number) % 100 for number in range(count)], pa.uint64()),
            "hash_lo": pa.array([2**63 + number for number in range(count)], pa.uint64()),
        }
        pq.write_table(pa.table(columns), rows)
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        job = TokenizeLanguageJob(
            tokenizer=tiny_lm,
            task=task,
            max_length=max_length,
            too_long=too_long,
            shards=[RowShard(digest="5" * 64, rows=rows, out=out)],
        )
        notes = Notes()
        assert main(job, notes) == Done()
        assert notes.lines == [{"done": 1, "total": 1, "digest": "5" * 64}]
        return out

    return tokenize


def table_of(out):
    return pq.read_table(out / "tokens.parquet")


def lengths_of(out):
    return np.load(out / "lengths.npy").tolist()


class TestTokens:
    def test_equal_those_of_each_example(self, tokenize, tokenizer):
        examples = [{"messages": TALK}, {"messages": SHORT}] * 600
        table = table_of(tokenize(examples))
        [long] = encode_example(tokenizer, examples[0], "instruction")
        [short] = encode_example(tokenizer, examples[1], "instruction")
        rows = table.to_pylist()
        assert [row["row"] for row in rows] == list(range(1200))
        assert all(row["input_ids"] == [long, short][row["row"] % 2].ids for row in rows)
        assert all(row["loss_mask"] == [long, short][row["row"] % 2].loss_mask for row in rows)
        assert [row["hash_hi"] for row in rows[:3]] == [0, 7, 14]
        assert rows[5]["hash_lo"] == 2**63 + 5

    def test_have_these_columns(self, tokenize):
        for examples in ([{"messages": SHORT}], []):
            assert table_of(tokenize(examples)).schema == pa.schema(
                {
                    "row": pa.uint32(),
                    "side": pa.uint8(),
                    "hash_hi": pa.uint64(),
                    "hash_lo": pa.uint64(),
                    "input_ids": pa.list_(pa.int32()),
                    "loss_mask": pa.list_(pa.uint8()),
                    "length": pa.int32(),
                    "truncated": pa.bool_(),
                }
            )

    def test_are_the_same_bytes_each_time(self, tokenize):
        found = []
        for _ in range(2):
            out = tokenize([{"messages": TALK}] * 3)
            found.append({path.name: path.read_bytes() for path in out.iterdir()})
        assert found[0] == found[1]
        assert set(found[0]) == {"tokens.parquet", "lengths.npy", "samples.json"}

    def test_of_a_preference_pair_are_chosen_then_rejected(self, tokenize, tokenizer):
        table = table_of(tokenize([PAIR, PAIR], "preference"))
        assert table["row"].to_pylist() == [0, 0, 1, 1]
        assert table["side"].to_pylist() == [0, 1, 0, 1]
        expected = [each.ids for each in encode_example(tokenizer, PAIR, "preference")]
        assert table["input_ids"].to_pylist() == expected * 2

    def test_are_counted(self, tokenize, tokenizer):
        [long] = encode_example(tokenizer, {"messages": TALK}, "instruction")
        [counted] = lengths_of(tokenize([{"messages": TALK}]))
        assert counted == [len(long.ids), len(long.ids), sum(long.loss_mask), len(long.ids), 0]
        sides = encode_example(tokenizer, PAIR, "preference")
        total, longest = sum(len(each.ids) for each in sides), len(sides[0].ids)
        [counted] = lengths_of(tokenize([PAIR], "preference"))
        assert counted == [total, total, sum(sum(each.loss_mask) for each in sides), longest, 0]


class TestLongExample:
    """TALK has some 75 tokens, and its first answer begins after the 40th."""

    @pytest.fixture(scope="class")
    def whole(self, tokenizer):
        [encoded] = encode_example(tokenizer, {"messages": TALK}, "instruction")
        assert len(encoded.ids) > 70
        return encoded

    def test_is_truncated_at_its_end(self, tokenize, whole):
        out = tokenize([{"messages": TALK}, {"messages": SHORT}], max_length=60)
        first, second = table_of(out).to_pylist()
        assert first["input_ids"] == whole.ids[:60]
        assert first["loss_mask"] == whole.loss_mask[:60]
        assert (first["length"], first["truncated"], second["truncated"]) == (60, True, False)
        assert lengths_of(out)[0] == [
            60,
            len(whole.ids),
            sum(whole.loss_mask[:60]),
            len(whole.ids),
            0,
        ]

    def test_is_left_out_if_nothing_of_its_answer_remains(self, tokenize, whole):
        start = whole.loss_mask.index(1)
        out = tokenize([{"messages": TALK}, {"messages": SHORT}], max_length=start)
        assert table_of(out)["row"].to_pylist() == [1]
        assert lengths_of(out)[0] == [0, len(whole.ids), 0, len(whole.ids), 0]

    def test_can_be_dropped(self, tokenize, whole):
        examples = [{"messages": TALK}, {"messages": SHORT}]
        out = tokenize(examples, max_length=len(whole.ids) - 1, too_long="drop")
        assert table_of(out)["row"].to_pylist() == [1]
        assert lengths_of(out)[0][0] == 0
        assert (
            table_of(tokenize(examples, max_length=len(whole.ids), too_long="drop")).num_rows == 2
        )

    def test_can_be_split(self, tokenize, whole):
        out = tokenize([{"messages": TALK}], max_length=16, too_long="split")
        rows = table_of(out).to_pylist()
        parts = [
            (whole.ids[start : start + 16], [0, *whole.loss_mask[start : start + 16][1:]])
            for start in range(0, len(whole.ids), 16)
        ]
        kept = [part for part in parts if any(part[1])]
        assert 1 < len(kept) < len(parts)
        assert [(row["input_ids"], row["loss_mask"]) for row in rows] == kept
        assert all(row["truncated"] and row["row"] == 0 for row in rows)
        assert lengths_of(out)[0][0] == sum(len(part[0]) for part in kept)

    def test_of_plain_text_is_split_without_losing_a_token(self, tokenize, tokenizer):
        text = "One word follows another word. " * 9
        rows = table_of(tokenize([{"text": text}], "completion", 16, "split")).to_pylist()
        ids = [token for row in rows for token in row["input_ids"]]
        assert ids == [*tokenizer.encode(text), 2]

    @pytest.mark.parametrize("too_long", ["truncate", "drop"])
    def test_of_a_preference_pair_takes_the_other_side_with_it(self, tokenize, tokenizer, too_long):
        chosen, rejected = encode_example(tokenizer, PAIR, "preference")
        limit = len(rejected.ids) if too_long == "drop" else chosen.loss_mask.index(1)
        swapped = PAIR | {"chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}
        short = {"prompt": SHORT[:1], "chosen": SHORT[1:], "rejected": TALK[3:]}
        out = tokenize([PAIR, swapped, short], "preference", limit, too_long)
        assert table_of(out)["row"].to_pylist() == [2, 2]

    def test_of_a_preference_pair_may_leave_two_equal_sides_which_teach_nothing(
        self, tokenize, tokenizer
    ):
        same = "the same words " * 20
        alike = PAIR | {
            side: [{"role": "assistant", "content": same + end}]
            for side, end in (("chosen", "good"), ("rejected", "bad"))
        }
        length = len(encode_example(tokenizer, alike, "preference")[0].ids)
        out = tokenize([alike, PAIR], "preference", length - 10)
        assert set(table_of(out)["row"].to_pylist()) == {1}
        assert lengths_of(out)[0][0] == 0

    def test_of_a_preference_pair_cannot_be_split(self, tokenize):
        with pytest.raises(BadRecipe, match="parts of preference pairs cannot be compared"):
            tokenize([PAIR], "preference", too_long="split")


class TestSamples:
    def test_mark_the_targets_of_the_rows_with_the_smallest_hashes(self, tokenize):
        examples = [{"prompt": f"{number} and", "completion": " more"} for number in range(40)]
        samples = json.loads((tokenize(examples, "completion") / "samples.json").read_bytes())
        assert [each["row"] for each in samples][:4] == [0, 29, 15, 1]
        assert len(samples) == 12
        assert samples[2] == {
            "hash": f"{5:016x}{2**63 + 15:016x}",
            "row": 15,
            "side": 0,
            "segments": [
                {"target": False, "text": "15 and"},
                {"target": True, "text": " more<|im_end|>"},
            ],
        }

    def test_include_both_sides_of_a_preference_pair(self, tokenize):
        samples = json.loads((tokenize([PAIR], "preference") / "samples.json").read_bytes())
        assert [each["segments"][1]["text"] for each in samples] == [
            "The capital of France is Paris, on the Seine.<|im_end|>",
            "Hello.<|im_end|>",
        ]


class TestBadRow:
    def test_without_target_tokens_is_named(self, tokenize):
        examples = [{"text": "Fine."}] * 700 + [{"text": ""}]
        with pytest.raises(BadData, match="without target tokens") as caught:
            tokenize(examples, "completion")
        assert caught.value.where == "data, row 700 of shard 555555555555: 'input 700'"

    def test_without_an_answer_is_named(self, tokenize):
        with pytest.raises(BadData, match=r"row 1 of shard.*without an assistant turn"):
            tokenize([{"messages": SHORT}, {"messages": SHORT[:1]}])

    def test_that_the_template_cannot_render_is_named(self, tokenize):
        call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
        with pytest.raises(BadModel, match=r"a tool call.*in row 1 of shard"):
            tokenize([{"messages": SHORT}, {"messages": [SHORT[0], call]}])
