# Needs GNU make and python3 (3.11 or later); everything else comes from the package index into .venv.

PYTHON ?= python3
ARGS ?=
RUNTIME ?= 127.0.0.1:50051
MODEL ?= smollm2:135m

# gpu: an environment of its own, since the packages for cards and for processors write the same files.
DEVICE := cpu
VENV := .venv$(if $(filter-out cpu,$(DEVICE)),-$(DEVICE))
BIN := $(VENV)/bin
NATIVE := setup.py $(wildcard tools/*build*.py runtime_server/native/*.cpp runtime_server/native/*.h)
GHZ := .cache/bin/ghz
GHZ_VERSION := v0.121.0

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help up test test-gpu check lint types layers proto dist docs ghz load bench bench-peers bench-gpu run-bench-gpu serving relay cancellation soak clean

help: ## Show this list
	@echo "make up      serve the default model; ARGS='--http 0.0.0.0:8080' passes flags"
	@echo "make test    install what the tests need and run them; ARGS='-k keys' passes arguments to pytest"
	@echo "make test-gpu  run the tests that need a card, with the packages for one in .venv-gpu; make up DEVICE=gpu uses them, too"
	@echo "make check   all that CI checks: ruff, mypy, import-linter and the tests (protos and stubs among them)"
	@echo "make proto   generate the stubs under mantler/v1 from proto/"
	@echo "make docs    write the generated parts of README.md and docs/: help texts, settings, errors"
	@echo "make dist    build the wheel and the source archive into dist/, and check what they hold"
	@echo "make load    load-test a running runtime with ghz (needs Go); RUNTIME=$(RUNTIME) MODEL=$(MODEL)"
	@echo "make bench   measure Mantler and its peers, one after the other; ARGS=--quick to see whether everything works"
	@echo "make bench-peers  build llama-server and install OpenVINO GenAI for make bench, from the package index"
	@echo "make bench-gpu   measure decoding on a card; ARGS='--device cpu --shape tiny --context 64' to see whether it works"
	@echo "make serving measure a running facade, or any OpenAI-compatible server; ARGS='--key mk_live_... --url http://...'"
	@echo "make cancellation   measure how long a runtime goes on with a request whose client has left"
	@echo "make relay   measure what a token costs between the engine and the client, without a model"
	@echo "make soak    a mixed load of 30 minutes on mantler up, then checks; ARGS='--minutes 1'"
	@echo "make clean   remove .venv, caches and build leftovers; models and keys stay"

up: $(VENV)/.installed-$(DEVICE)
	@exec $(BIN)/mantler up $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/pytest $(ARGS)

test-gpu:
	@$(MAKE) --no-print-directory test DEVICE=gpu ARGS='tests/gpu -s $(ARGS)'

check: lint types layers test

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

layers: $(VENV)/.installed-dev
	$(BIN)/lint-imports

proto: $(VENV)/.installed-dev
	$(BIN)/buf format --write
	$(BIN)/python tools/gen_proto.py

dist: $(VENV)/.installed-dev
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python tools/check_dist.py dist

docs: $(VENV)/.installed-dev
	$(BIN)/python -m tools.gen_docs

bench-gpu:
	@$(MAKE) --no-print-directory DEVICE=gpu run-bench-gpu

run-bench-gpu: $(VENV)/.installed-$(DEVICE)
	@exec $(BIN)/python -m bench.gpu $(ARGS)

ghz: $(GHZ)

bench: $(VENV)/.installed-$(DEVICE) $(VENV)/.installed-bench
	@exec $(BIN)/python -m bench.compare $(ARGS)

bench-peers: $(VENV)/.created
	@exec $(BIN)/python -m bench.get_peers $(ARGS)

serving: $(VENV)/.installed-$(DEVICE)
	@exec $(BIN)/python -m bench.serving $(ARGS)

relay: $(VENV)/.installed-$(DEVICE)
	@exec $(BIN)/python -m bench.relay $(ARGS)

cancellation: $(VENV)/.installed-$(DEVICE)
	@exec $(BIN)/python -m bench.cancellation $(ARGS)

soak: $(VENV)/.installed-$(DEVICE) $(VENV)/.installed-bench
	@exec $(BIN)/python -m bench.soak $(ARGS)

load: $(GHZ)
	$(PYTHON) bench/ghz/run.py --ghz $(GHZ) --runtime $(RUNTIME) --model $(MODEL) $(ARGS)

clean:
	rm -rf .venv .venv-gpu .cache build dist *.egg-info runtime_server/native/libmantler_ops.* .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written when the step before it has succeeded, so an interrupted installation is taken up again.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Mantler needs Python 3.11 or later; $(PYTHON) is %d.%d. Try: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot create virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@touch $@

# Installing compiles the native operators, for which pip fetches a compiler if the machine has none.
$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml $(NATIVE)
	@echo "Installing packages and the tools for tests into $(VENV) (one to three minutes the first time)"
	@$(BIN)/python -m pip install --quiet --editable '.[$(DEVICE),dev]'
	@touch $@ $(VENV)/.installed-$(DEVICE)

$(VENV)/.installed-%: $(VENV)/.created pyproject.toml $(NATIVE)
	@echo "Installing packages into $(VENV) (one to two minutes the first time)"
	@$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

$(GHZ):
	@command -v go >/dev/null || { echo "ghz is built with Go, and there is no Go toolchain here: https://go.dev/dl" >&2; exit 1; }
	GOBIN=$(CURDIR)/.cache/bin go install github.com/bojand/ghz/cmd/ghz@$(GHZ_VERSION)
