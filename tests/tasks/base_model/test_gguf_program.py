"""Converting a GGUF file: the model has its weights and answers as it should, or it is refused."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch

from tasks.base_model.gguf_program import main
from tasks.chat.encoder import encode_prompt
from tasks.chat.stop_tokens import training_tokenizer
from tasks.contracts.errors import BadModel
from tasks.contracts.jobs import ConvertGgufJob, ConvertGgufResult
from tests.tasks.base_model.gguf_files import write_gguf
from tests.tasks.conftest import Notes


@pytest.fixture
def run(tmp_path):
    """Runs the program on files; returns what it says, and the folder that it wrote."""

    def run(*files):
        job = ConvertGgufJob(files=files, out=tmp_path / "out")
        return main(job, Notes()), tmp_path / "out"

    return run


class TestAGgufFile:
    @pytest.mark.parametrize(
        ("kind", "expected"), [(np.float32, "float32"), (np.float16, "bfloat16")]
    )
    def test_becomes_a_model_with_its_weights(self, run, tmp_path, kind, expected):
        from transformers import AutoModelForCausalLM

        file = write_gguf(tmp_path / "m.gguf", kind=kind)
        facts, out = run(file)
        assert facts == ConvertGgufResult(architecture="LlamaForCausalLM", dtype=expected)
        model = AutoModelForCausalLM.from_pretrained(out)
        assert model.dtype == getattr(torch, expected)
        assert model.config.tie_word_embeddings
        stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
        own = torch.from_numpy(np.array(stored["blk.0.ffn_up.weight"])).to(model.dtype)
        assert torch.equal(model.model.layers[0].mlp.up_proj.weight, own)

    def test_says_nothing_of_where_it_lay(self, run, tmp_path):
        _, out = run(write_gguf(tmp_path / "m.gguf", general__name="Some Model"))
        said = "".join(file.read_text() for file in out.glob("*.json"))
        assert str(tmp_path) not in said
        assert "Some Model" not in said
        settings = json.loads((out / "generation_config.json").read_text())
        assert settings["eos_token_id"] == 0
        assert training_tokenizer(out).pad_token is None


class TestAGgufFileIsRefused:
    def refused(self, run, found, *files):
        with pytest.raises(BadModel, match=found) as caught:
            run(*files)
        assert caught.value.where == "model.uri"
        return caught.value

    def test_if_it_is_a_part(self, run, tmp_path):
        file = write_gguf(tmp_path / "m-00001-of-00003.gguf", split__count=3)
        error = self.refused(run, r"in 3 parts \(1 of them here\)", file)
        assert "llama-gguf-split --merge" in error.fix

    def test_if_it_projects_images(self, run, tmp_path):
        file = write_gguf(tmp_path / "mmproj.gguf", "clip", general__type="mmproj")
        self.refused(run, "holds no language model", file)

    @pytest.mark.parametrize("architecture", ["bert", "nomic-bert", "t5encoder"])
    def test_if_it_is_an_encoder(self, run, tmp_path, architecture):
        self.refused(run, "of an encoder", write_gguf(tmp_path / "m.gguf", architecture))

    def test_if_transformers_cannot_read_it(self, run, tmp_path):
        error = self.refused(
            run, "'rwkv7', which transformers cannot read", write_gguf(tmp_path / "m.gguf", "rwkv7")
        )
        assert "llama" in error.expected

    @pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
    def test_if_it_is_damaged(self, run, tmp_path, share):
        file = write_gguf(tmp_path / "m.gguf")
        whole = file.read_bytes()
        file.write_bytes(whole[: int(len(whole) * share)])
        self.refused(run, "cannot be read", file)

    def test_if_it_is_something_else(self, run, tmp_path):
        (tmp_path / "m.gguf").write_bytes(b"anything at all, but no model" * 9)
        self.refused(run, "cannot be read", tmp_path / "m.gguf")

    def test_if_tensors_are_missing(self, run, tmp_path):
        file = write_gguf(tmp_path / "m.gguf")
        # A second layer is announced, and is not there.
        data = file.read_bytes()
        key = b"llama.block_count"
        place = data.index(key) + len(key) + 4
        file.write_bytes(data[:place] + b"\2" + data[place + 1 :])
        self.refused(run, "without 9 of the model's tensors", file)


@pytest.mark.slow
class TestSmolLm:
    def test_answers_sensibly_and_ends(self, smollm):
        from transformers import AutoModelForCausalLM

        tokenizer = training_tokenizer(smollm)
        ask = [{"role": "user", "content": "What is the capital of France?"}]
        example = {"messages": [*ask, {"role": "assistant", "content": "Paris"}]}
        prompt = encode_prompt(tokenizer, example, "instruction")
        model = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32)
        said = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0]
        assert tokenizer.decode(said[len(prompt) :]) == "The capital of France is Paris.<|im_end|>"

    def test_has_the_settings_of_the_original(self, smollm):
        config = json.loads((smollm / "config.json").read_text())
        assert config["rope_parameters"]["rope_theta"] == 100000
        assert config["tie_word_embeddings"] is True
        assert (config["eos_token_id"], config["pad_token_id"]) == (2, 0)
        assert json.loads((smollm / "generation_config.json").read_text())["eos_token_id"] == 2
