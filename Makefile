# All that is needed is make and Python; the rest comes from the hashed locks into .venv.
PYTHON ?= python3
ARGS ?=
SECONDS ?= 60
MINUTES ?= 15
BIN := .venv/bin

.DELETE_ON_ERROR:
.PHONY: help demo test install check bench fuzz soak lock clean

help:
	@echo 'make demo    set up, then classify a real photograph      (ARGS=--once: exit after it)'
	@echo 'make test    set up with the test tools, then run the tests  (ARGS=...: passed to pytest)'
	@echo 'make install set up .venv for serving, with PostgreSQL, Redis and traces: the README says how to go on'
	@echo 'make check   format, lint, types, import rules, dead code, security lint, audit'
	@echo 'make bench   every speed that is claimed, in 45 minutes   (ARGS="--only real", ARGS=--help: parts of it)'
	@echo 'make fuzz    look for inputs that break the parsers       (SECONDS=60: for each of them)'
	@echo 'make soak    honest and hostile traffic with faults in between  (MINUTES=15, ARGS="--seed 7": the same again)'
	@echo 'make lock    rewrite the locks from pyproject.toml        (ARGS=--upgrade: to the newest versions)'
	@echo 'make clean   remove .venv and the caches of the tools'

demo: .venv/.demo
	$(BIN)/lensgate demo $(ARGS)

install: .venv/.install
	@echo 'Installed: .venv/bin/lensgate'

test: .venv/.test
	@# Half of the tests' time is waiting for servers, so two processes share them; the tests of one file stay together.
	$(BIN)/python -m pytest -n 2 --dist loadscope $(ARGS)

check: .venv/.check
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/vulture
	$(BIN)/bandit -q -c pyproject.toml --severity-level medium -r api security inference
	$(BIN)/hadolint Dockerfile
	PATH="$$PWD/$(BIN):$$PATH" shellcheck .ci/run locks/*.sh
	$(BIN)/python locks/lock.py --check
	$(BIN)/python locks/audit.py

bench: .venv/.bench
	$(BIN)/python -m benchmarks $(ARGS)

fuzz: .venv/.check
	$(BIN)/python -m fuzz.run picture --seconds $(SECONDS)
	$(BIN)/python -m fuzz.run token --seconds $(SECONDS)
	$(BIN)/python -m fuzz.run client_auth --seconds $(SECONDS)
	$(BIN)/python -m fuzz.run client_address --seconds $(SECONDS)
	$(BIN)/python -m fuzz.run jwks --seconds $(SECONDS)

soak: .venv/.test
	PYTHONPATH=tests $(BIN)/python -m soak --minutes $(MINUTES) $(ARGS)

lock: .venv/.build
	$(BIN)/python locks/lock.py $(ARGS)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage .fuzz

# A stamp for each lock that is installed: a second run is instant, and a lock that changed is installed again.
.venv/.build: locks/build.txt
	@locks/venv.sh '$(PYTHON)'
	@touch $@

define INSTALL
locks/uv.sh pip install --python $(BIN)/python --require-hashes --only-binary :all: $(addprefix -r ,$(filter locks/%.txt,$^))
locks/uv.sh pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
@# Compiles to bytecode what a start imports, so that the first one is as quick as every other.
$(BIN)/python -c 'import api.demo, api.worker_process, inference.worker.model, timm'
@touch $@
endef

.venv/.demo .venv/.test .venv/.check .venv/.bench: .venv/.%: locks/%.txt .venv/.build pyproject.toml
	$(INSTALL)

# serve.txt leaves out torch, which the container's base image brings.
.venv/.install: locks/demo.txt locks/serve.txt .venv/.build pyproject.toml
	$(INSTALL)
