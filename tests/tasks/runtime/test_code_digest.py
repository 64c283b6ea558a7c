"""Which edits of the code run a step again, and which do not."""

import ast
import importlib
import shutil

import pytest

from tasks.evaluate.step import score
from tasks.gate.step import gate
from tasks.runtime import code_digest as digests
from tasks.runtime.cache import Step
from tasks.runtime.code_digest import (
    INFRASTRUCTURE,
    ROOT,
    TASK_TABLES,
    code_digest,
    covered_modules,
    library_versions,
    module_file,
    read_module,
)


def find_steps() -> dict[str, Step]:
    """All cached steps, by name."""
    found = {}
    for file in sorted((ROOT / "tasks").glob("*/*step.py")):
        module = importlib.import_module(f"tasks.{file.parent.name}.{file.stem}")
        steps = [item for item in vars(module).values() if isinstance(item, Step)]
        found |= {step.name: step for step in steps}
    return found


STEPS = find_steps()

COVERED = {
    "gguf": """
        base_model: gguf_program gguf_step
        chat: messages reasoning stop_tokens template tokenizer
        models: adapter classifier load_errors weights
    """,
    "inspect": """
        base_model: inspect_program inspect_step
        chat: messages reasoning stop_tokens template tokenizer
        kernels: packed_attention
        models: adapter causal classifier load_errors weights
    """,
    "load": """
        contracts: task_tables
        load: chat_rows chunk_content chunk_tables chunk_text chunking data_report dedup encodings
            ingest json_files json_values labels minhash read_csv read_jsonl read_parquet_arrow
            read_pool read_settings read_text_folders readers row_formats shards source_format
            splits step
    """,
    "tokenize": """
        chat: coverage encoder messages prompt_join reasoning rendering stop_tokens template
            token_ranges tokenizer
        load: dataset json_values splits
        tokenize: classification_program language_program step
    """,
    "forecast": """
        kernels: packed_attention
        models: adapter causal load_errors weights
        plan: cuda_memory fake_model forecast_program forecast_step memory_trace memory_tracker
        training: classification_batches forward language_batches losses
    """,
    "finetune": """
        chat: messages reasoning stop_tokens template tokenizer
        finetune: checkpoint_store program step
        kernels: packed_attention
        models: adapter causal classifier distributed liger load_errors merge weights
        training: allocator callbacks checkpoints classification classification_batches
            classification_metrics forward history language language_batches loss_check losses
            micro_batches preference
            validation_metrics
    """,
    "gguf-check": """
        finetune: gguf_check_program gguf_export_program gguf_export_step
    """,
    "gguf-export": """
        finetune: gguf_export_program gguf_export_step
    """,
    "evaluate": """
        chat: coverage encoder messages prompt_join reasoning rendering stop_tokens template
            token_ranges tokenizer
        contracts: task_tables
        evaluate: answer_metrics classification_program generation language_inputs language_metrics
            language_program metrics release_check released_model score_table step
        kernels: packed_attention
        load: dataset json_values splits
        models: adapter causal classifier load_errors weights
        training: classification_metrics losses
    """,
    "llm-judge": """
        evaluate: llm_judge_client llm_judge_step llm_judge_verdicts score_table
        load: dataset splits
    """,
    "benchmarks": """
        chat: messages reasoning stop_tokens template tokenizer
        evaluate: benchmark_check_program benchmark_program benchmark_step released_model
        kernels: packed_attention
        models: adapter causal load_errors weights
    """,
    "gate": """
        contracts: task_tables
        evaluate: language_metrics llm_judge_verdicts score_table
        gate: anchor_rule bootstrap_f1 bootstrap_mean claim_rule classification decide evidence
            exact_rules exact_tests first_release guard_rule language phrasing power resampling
            rules slice_rules step
        training: classification_metrics
    """,
}
"""For each step, the modules whose edits run it again, by folder. Everything else may be edited
freely: a step that covers more than it needs costs a training run for a change of words."""


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Writes small modules, by name below `tasks`, that are digested in place of the real ones."""
    monkeypatch.setattr(digests, "ROOT", tmp_path)
    read_module.cache_clear()

    def write(**sources):
        for name, source in sources.items():
            file = tmp_path / "tasks" / f"{name.replace('__', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        read_module.cache_clear()

    yield write
    read_module.cache_clear()


@pytest.fixture
def copied_code(tmp_path, monkeypatch):
    """A copy of the real code that may be edited, digested in its place."""
    shutil.copytree(ROOT / "tasks", tmp_path / "tasks")
    monkeypatch.setattr(digests, "ROOT", tmp_path)
    read_module.cache_clear()
    yield tmp_path / "tasks"
    read_module.cache_clear()


def append(file, text="\nADDED = 1\n"):
    file.write_text(file.read_text() + text)
    read_module.cache_clear()


def digest_all():
    return {name: code_digest(step.code) for name, step in STEPS.items()}


class TestEditsThatChangeADigest:
    @pytest.fixture
    def changes(self, code):
        """Whether an edit of the code of a function changes its digest."""

        def compare(before, after):
            code(gate__one=f"def f(a):\n    {before}\n")
            first = code_digest(("tasks.gate.one",))
            code(gate__one=f"def f(a):\n    {after}\n")
            return code_digest(("tasks.gate.one",)) != first

        return compare

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("return a + 1", "return a + 2"),
            ("return 1", "return '1'"),
            ("return 'sum'", "return 'mean'"),
            ("return g([a], a)", "return g([a, a])"),
            ("raise BadData('x')", "raise BadModel('x')"),
            ("raise BadData('x', a)", "raise BadData('x', b)"),
            ("raise BadData('x')", "return BadData('x')"),
            ("return a.sort('x')", "return a.sort('y')"),
        ],
    )
    def test_what_runs_counts(self, changes, before, after):
        assert changes(before, after)

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("return a", "return a  # as given"),
            ("return a", "'''As given.'''\n    return a"),
            ("x = 1\n    'First.'", "x = 1\n    'One.'"),
            ("return g(a, a)", "return g(\n        a,\n        a,\n    )"),
        ],
    )
    def test_comments_docstrings_and_formatting_do_not(self, changes, before, after):
        assert not changes(before, after)

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("raise BadData('x', 'y')", "raise BadData('z', 'y')"),
            ("return BadData('x')", "return BadData('y')"),
            ("raise errors.BadData('x')", "raise errors.BadData('y')"),
            ("raise BadData(f'{a} rows')", "raise BadData(f'rows: {a}')"),
            ("raise BadData(g('x')) from a", "raise BadData(g('y')) from a"),
            ("raise BadData(fix='x')", "raise BadData(fix='y')"),
        ],
    )
    def test_nor_do_the_sentences_of_errors(self, changes, before, after):
        assert not changes(before, after)


class TestImports:
    def test_an_import_counts_whether_direct_or_not_also_in_a_function(self, code):
        code(
            load__root="from tasks.load.middle import x",
            load__middle="def f():\n    from tasks.chat import leaf",
            chat__leaf="",
            chat__other="",
        )
        covered = covered_modules(("tasks.load.root",))
        assert covered == ["tasks.chat.leaf", "tasks.load.middle", "tasks.load.root"]

    def test_modules_that_import_each_other_are_read_once(self, code):
        code(load__a="import tasks.load.b", load__b="import tasks.load.a")
        assert covered_modules(("tasks.load.a",)) == ["tasks.load.a", "tasks.load.b"]

    def test_the_order_of_the_roots_does_not_matter(self, code):
        code(load__a="1", load__b="2")
        assert code_digest(("tasks.load.a", "tasks.load.b")) == code_digest(
            ("tasks.load.b", "tasks.load.a")
        )

    def test_equal_code_in_another_module_is_other_code(self, code):
        code(load__a="1", load__b="1")
        assert code_digest(("tasks.load.a",)) != code_digest(("tasks.load.b",))

    def test_a_root_that_does_not_exist_is_an_error(self, code):
        with pytest.raises(FileNotFoundError):
            code_digest(("tasks.load.nothing",))


def by_folder(modules: list[str]) -> dict[str, list[str]]:
    """Modules of `tasks`, by folder."""
    found: dict[str, list[str]] = {}
    for module in modules:
        _, folder, name = module.split(".")
        found.setdefault(folder, []).append(name)
    return found


def parse_covered(text: str) -> dict[str, list[str]]:
    """The modules by folder that an entry of `COVERED` names."""
    found: dict[str, list[str]] = {}
    for word in text.split():
        if word.endswith(":"):
            folder = found.setdefault(word.removesuffix(":"), [])
        else:
            folder.append(word)
    return found


class TestSteps:
    def test_every_step_declares_what_it_covers(self):
        assert COVERED.keys() == STEPS.keys()

    @pytest.mark.parametrize("name", STEPS)
    def test_a_step_covers_the_declared_modules_only(self, name):
        assert by_folder(covered_modules(STEPS[name].code)) == parse_covered(COVERED[name])

    @pytest.mark.parametrize("name", STEPS)
    def test_every_root_counts(self, name, copied_code):
        for root in STEPS[name].code:
            before = code_digest(STEPS[name].code)
            append(module_file(root))
            assert code_digest(STEPS[name].code) != before, root

    @pytest.mark.parametrize("folder", INFRASTRUCTURE)
    def test_editing_infrastructure_changes_no_digest(self, folder, copied_code):
        before = digest_all()
        for file in (copied_code / folder.removeprefix("tasks.")).glob("*.py"):
            if file.stem != TASK_TABLES.rpartition(".")[2]:
                append(file)
        assert digest_all() == before

    def test_editing_the_tables_of_tasks_reads_and_scores_again_but_trains_nothing(
        self, copied_code
    ):
        before = digest_all()
        append(copied_code / "contracts" / "task_tables.py")
        changed = {name for name, digest in digest_all().items() if digest != before[name]}
        assert {"load", "evaluate", "gate"} <= changed
        assert not {"tokenize", "finetune", "forecast", "inspect"} & changed

    def test_editing_a_helper_that_is_only_imported_changes_the_digest(self, copied_code):
        before = code_digest(gate.code)
        append(copied_code / "gate" / "exact_tests.py")
        assert code_digest(gate.code) != before

    def test_rewording_the_gate_decides_again_but_scores_nothing_again(self, copied_code):
        decided, scored = code_digest(gate.code), code_digest(score.code)
        for file in (copied_code / "gate").glob("*.py"):
            file.write_text(ast.unparse(Reworded().visit(ast.parse(file.read_text()))))
        read_module.cache_clear()
        assert code_digest(gate.code) != decided
        assert code_digest(score.code) == scored


class Reworded(ast.NodeTransformer):
    """Adds a word to each text of a module."""

    def visit_Constant(self, node):
        text = isinstance(node.value, str)
        return ast.Constant(f"{node.value} indeed") if text else node

    def visit_FormattedValue(self, node):
        # Its format is no text.
        return node


class TestLibraryVersions:
    def test_names_the_installed_version(self):
        assert library_versions(("pytest",)) == {"pytest": pytest.__version__}

    def test_a_library_that_is_missing_is_absent(self):
        assert library_versions(("no-such-library",)) == {"no-such-library": "absent"}
