"""Before training, it is known whether the model can be exported to GGUF."""

import shutil

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from tasks.contracts.errors import BadModel
from tasks.contracts.jobs import CheckGgufJob, Done
from tasks.runtime.gguf_converter import find_converter
from tasks.runtime.run_program import run_program


def check(work, base, tokenizer):
    """Check whether a model trained on this base can be exported."""
    work.mkdir(parents=True, exist_ok=True)
    job = CheckGgufJob(
        converter=find_converter(), file_type="f16", base=base, tokenizer=tokenizer, work=work
    )
    return run_program("tasks.finetune.gguf_check_program", job, Done, scratch=work)


class TestCheck:
    def test_of_a_base_that_the_converter_knows_leaves_no_files(self, tiny_lm, tmp_path):
        assert check(tmp_path / "work", tiny_lm, tiny_lm) == Done()
        assert not [path for path in (tmp_path / "work").iterdir() if path.is_dir()]

    def test_refuses_a_tokenizer_that_the_converter_does_not_know(self, tiny_lm, tmp_path):
        tokenizer_copy = shutil.copytree(tiny_lm, tmp_path / "model")
        tokenizer = Tokenizer.from_file(str(tokenizer_copy / "tokenizer.json"))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex("."), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.save(str(tokenizer_copy / "tokenizer.json"))
        with pytest.raises(BadModel, match=r"model\.gguf.*LlamaForCausalLM.*pre-tokenizer"):
            check(tmp_path / "work", tiny_lm, tokenizer_copy)
