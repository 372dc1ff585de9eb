# The front door: `make run` boots a guest, `make test` is all that CI runs. `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A venv that is only sometimes active must not decide which Python the extension is built for.
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python
PYTHON ?= $(shell scripts/find-python)
RUST_SOURCES := Cargo.toml Cargo.lock $(shell find crates -name '*.rs' -o -name Cargo.toml -o -name '*.s')
CARGO_FLAGS := --workspace --release --locked
PYTHON_SOURCES := src tests benchmarks

.NOTPARALLEL:
.PHONY: help build run test lint test-rust test-python fuzz bench clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

build: $(VENV)/.built  ## Build everything into .venv

$(VENV)/.created:
	@scripts/check-host
	@test -n "$(PYTHON)" || { echo "sublet: error: no Python >= 3.11 with venv" >&2; exit 1; }
	@echo "==> creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet 'maturin>=1.7,<2'
	@touch $@

# The Python files are installed by reference; only the core and the metadata need building.
$(VENV)/.built: $(VENV)/.created pyproject.toml $(RUST_SOURCES)
	@scripts/check-host
	@echo "==> installing what sublet needs, and building its core (a few minutes the first time)"
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --locked --extras dev
	@touch $@

run: build  ## Boot the default guest on this terminal
	@$(BIN)/sublet run

test: build lint test-rust test-python  ## Everything CI runs

lint: build
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --all-targets --quiet -- -D warnings

# The extension has no tests of its own: tests/unit/engine looks at it from Python.
test-rust: build
	cargo test $(CARGO_FLAGS) --exclude sublet-python --quiet
	SUBLET_TRANSLATE_WITHOUT=window-policy cargo test --release --locked --quiet --package sublet-translate --test instructions

test-python: build
	$(BIN)/pytest

fuzz: export SUBLET_FUZZ_SECONDS ?= 20
fuzz: build  ## Fuzz each target for SUBLET_FUZZ_SECONDS (20)
	@$(PIP) install --quiet --only-binary :all: atheris 2>/dev/null || \
	  echo "==> no atheris for this Python: fuzzing without the guidance of coverage"
	@for target in tests/fuzz/fuzz_*.py; do \
	  echo "==> $$target for $$SUBLET_FUZZ_SECONDS s"; PYTHONPATH=. $(BIN)/python "$$target"; done
	@echo "==> decoder to emitter for $$SUBLET_FUZZ_SECONDS s"
	@cargo test --release --locked --quiet --package sublet-translate --test instructions
	@echo "==> frames of a hostile machine for $$SUBLET_FUZZ_SECONDS s"
	@cargo test --release --locked --quiet --package sublet-net --test nat no_frame

bench: build  ## Run the benchmarks, beside their peers where the host has them
	@failed=0; for script in $$(grep -l __main__ benchmarks/*.py); do \
	  echo "==> $$script"; $(BIN)/python "$$script" || failed=1; done; exit $$failed

clean:  ## Remove what was built (guests stay in the cache)
	rm -rf $(VENV) target build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src -name '*.so' -path '*/core/*' -delete
