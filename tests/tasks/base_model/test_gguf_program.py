"""A converted GGUF file has the same weights and gives sensible answers; a bad one is refused."""

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
    """Convert files; returns the result and the folder with the model."""

    def run(*files):
        job = ConvertGgufJob(files=files, out=tmp_path / "out")
        return main(job, Notes()), tmp_path / "out"

    return run


class TestConvertedModel:
    @pytest.mark.parametrize(
        ("kind", "expected"), [(np.float32, "float32"), (np.float16, "bfloat16")]
    )
    def test_has_the_weights_of_the_file(self, run, tmp_path, kind, expected):
        from transformers import AutoModelForCausalLM

        file = write_gguf(tmp_path / "m.gguf", kind=kind)
        result, out = run(file)
        assert result == ConvertGgufResult(architecture="LlamaForCausalLM", dtype=expected)
        model = AutoModelForCausalLM.from_pretrained(out)
        assert model.dtype == getattr(torch, expected)
        assert model.config.tie_word_embeddings
        stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
        expected = torch.from_numpy(np.array(stored["blk.0.ffn_up.weight"])).to(model.dtype)
        assert torch.equal(model.model.layers[0].mlp.up_proj.weight, expected)

    def test_does_not_reveal_the_path_or_name_of_the_file(self, run, tmp_path):
        _, out = run(write_gguf(tmp_path / "m.gguf", general__name="Some Model"))
        written = "".join(file.read_text() for file in out.glob("*.json"))
        assert str(tmp_path) not in written
        assert "Some Model" not in written

    def test_has_the_end_token_of_the_file_and_no_pad_token(self, run, tmp_path):
        _, out = run(write_gguf(tmp_path / "m.gguf"))
        settings = json.loads((out / "generation_config.json").read_text())
        assert settings["eos_token_id"] == 0
        assert training_tokenizer(out).pad_token is None


class TestRefusedGgufFile:
    def refused(self, run, found, *files):
        with pytest.raises(BadModel, match=found) as caught:
            run(*files)
        assert caught.value.where == "model.uri"
        return caught.value

    def test_with_a_part_of_a_model(self, run, tmp_path):
        file = write_gguf(tmp_path / "m-00001-of-00003.gguf", split__count=3)
        error = self.refused(run, r"in 3 parts \(1 of them here\)", file)
        assert "llama-gguf-split --merge" in error.fix

    def test_with_an_image_projector(self, run, tmp_path):
        file = write_gguf(tmp_path / "mmproj.gguf", "clip", general__type="mmproj")
        self.refused(run, "holds no language model", file)

    @pytest.mark.parametrize("architecture", ["bert", "nomic-bert", "t5encoder"])
    def test_with_an_encoder(self, run, tmp_path, architecture):
        self.refused(run, "of an encoder", write_gguf(tmp_path / "m.gguf", architecture))

    def test_of_an_architecture_that_transformers_cannot_read(self, run, tmp_path):
        error = self.refused(
            run, "'rwkv7', which transformers cannot read", write_gguf(tmp_path / "m.gguf", "rwkv7")
        )
        assert "llama" in error.expected

    @pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
    def test_that_is_truncated(self, run, tmp_path, share):
        file = write_gguf(tmp_path / "m.gguf")
        whole = file.read_bytes()
        file.write_bytes(whole[: int(len(whole) * share)])
        self.refused(run, "cannot be read", file)

    def test_that_is_not_gguf(self, run, tmp_path):
        (tmp_path / "m.gguf").write_bytes(b"not a model at all, just text." * 9)
        self.refused(run, "cannot be read", tmp_path / "m.gguf")

    def test_without_some_tensors(self, run, tmp_path):
        file = write_gguf(tmp_path / "m.gguf")
        # The metadata claims a second layer.
        data = file.read_bytes()
        key = b"llama.block_count"
        offset = data.index(key) + len(key) + 4
        file.write_bytes(data[:offset] + b"\2" + data[offset + 1 :])
        self.refused(run, "without 9 of the model's tensors", file)


@pytest.mark.slow
class TestSmolLm:
    def test_answers_a_question_and_stops(self, smollm):
        from transformers import AutoModelForCausalLM

        tokenizer = training_tokenizer(smollm)
        question = [{"role": "user", "content": "What is the capital of France?"}]
        example = {"messages": [*question, {"role": "assistant", "content": "Paris"}]}
        prompt = encode_prompt(tokenizer, example, "instruction")
        model = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32)
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0]
        assert tokenizer.decode(ids[len(prompt) :]) == "The capital of France is Paris.<|im_end|>"

    def test_keeps_the_configuration_of_the_original(self, smollm):
        config = json.loads((smollm / "config.json").read_text())
        assert config["rope_parameters"]["rope_theta"] == 100000
        assert config["tie_word_embeddings"] is True
        assert (config["eos_token_id"], config["pad_token_id"]) == (2, 0)
        assert json.loads((smollm / "generation_config.json").read_text())["eos_token_id"] == 2
