# Each target sets up what it needs: from a clean checkout, `make demo` and `make test` are enough.
# Needs Python 3.11 or newer and make. PYTHON=... chooses another interpreter.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
WASM_VENV := .venv-wasm
EXAMPLE := examples/secondary-structure

# Containers, engines and the like are optional on a laptop and required in CI: REQUIRE=docker
REQUIRE ?=
PYTEST_FLAGS ?=
TEST_PROCESSES ?= 2

.PHONY: help setup demo test sim bench check fix wasm lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

$(RUNTIME): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and no python3 was found: install it, or say make PYTHON=/path/to/python3."; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11: say make PYTHON=/path/to/python3.11."; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): $(RUNTIME) requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-dev.lock
	@touch $@

setup: $(RUNTIME) ## make .venv, where .venv/bin/nexapod then is
	@echo "$(BIN)/nexapod is ready"

$(EXAMPLE)/weights.bin: $(EXAMPLE)/weights.py
	@$(MAKE) --no-print-directory $(RUNTIME)
	$(BIN)/python $(EXAMPLE)/weights.py $@

demo: $(RUNTIME) $(EXAMPLE)/weights.bin ## one bootstrap, five workers, a real protein job, a kill, a verified certificate
	@$(BIN)/nexapod demo $(DEMO_FLAGS)

test: $(DEV) $(EXAMPLE)/weights.bin ## the whole test pyramid
	$(BIN)/python -m pytest --numprocesses=$(TEST_PROCESSES) $(if $(REQUIRE),--require=$(REQUIRE)) $(PYTEST_FLAGS)

sim: $(RUNTIME) ## many seeds through the simulator
	$(BIN)/nexapod sim --seeds $(SIM_SEEDS)

SIM_SEEDS ?= 0:60

bench: $(DEV) ## how fast, against what (docs/benchmarks.md); BENCH="blobs containers split core mesh growth"
	@missed=""; for name in $(BENCH); do $(BIN)/python benchmarks/$$name.py || missed="$$missed $$name"; done; \
	test -z "$$missed" || { echo "missed a bar, or could not be measured:$$missed"; exit 1; }

BENCH ?= blobs containers split core mesh

check: $(DEV) ## lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

fix: $(DEV) ## format, and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(WASM_VENV)/.ready: requirements-wasm.lock
	"$(PYTHON)" -m venv $(WASM_VENV)
	$(WASM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-wasm.lock
	@touch $@

wasm: $(WASM_VENV)/.ready ## build the example's module and the sandbox probe again (WASM_FLAGS=--check compares them with the committed bytes)
	$(WASM_VENV)/bin/python $(EXAMPLE)/build.py $(WASM_FLAGS)
	$(WASM_VENV)/bin/python nexapod/executor/probe/build.py $(WASM_FLAGS)

lock: $(DEV) ## renew the lock files from pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml requirements-build.in -o requirements.lock $(LOCK_FLAGS)
	$(BIN)/uv pip compile pyproject.toml requirements-build.in --group dev -o requirements-dev.lock $(LOCK_FLAGS)

LOCK_FLAGS := --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --override requirements-override.in

clean: ## remove everything that make made
	rm -rf $(VENV) $(WASM_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis $(EXAMPLE)/weights.bin
