# The same targets that CI runs. `make` alone says what there is.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test simulate torture check bench profile lock clean

help: ## what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements-dev.txt pyproject.toml
	@echo "==> making .venv and installing the pinned dependencies (about a minute, once)"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.13 ...")'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## Kafka, simulator and ingester on this machine: a settlement, then 100,000 events
	@$(BIN)/ingester demo

test: $(STAMP) ## all tests, on a real broker (Docker engine, or a JVM with Maven)
	@echo "==> running the tests; the first run fetches a Kafka (about 60 MB)"
	@$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 2

SEEDS ?= 10000
SEED ?= 0
simulate: $(STAMP) ## the core in SEEDS=10000 unkind worlds from SEED=0 on; SEEDS=1 replays one
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) --seed $(SEED)

KILLS ?= 200
torture: $(STAMP) ## KILLS=200 workers killed at every step, and as many at random; then brokers; SEED=0
	@$(BIN)/python -m tests.torture --kills $(KILLS) --seed $(SEED)
	@$(BIN)/python -m tests.torture.failover

check: $(STAMP) ## formatting, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

BENCH ?=
bench: $(STAMP) ## speed, CPU, latency beside a plain aiokafka+httpx loop; BENCH=--help has more
	@$(BIN)/python -m tests.benchmark $(BENCH)

PROFILE ?=
profile: $(STAMP) ## a flame graph of a worker, in .bench/profile.svg; PROFILE=--help has more
	@$(BIN)/python -m tests.benchmark.flame $(PROFILE)

lock: ## pin the newest allowed versions, with hashes and without addresses
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml -o requirements.txt $(LOCK)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra dev pyproject.toml -o requirements-dev.txt $(LOCK)

clean: ## remove what make made
	rm -rf .venv .bench .torture .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
