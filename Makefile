# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_ROOT ?= cytolake_data
PYTEST_WORKERS ?= 2

.PHONY: demo test test-slow lint install clean help

help:
	@echo "make demo        run the whole line on a simulated screen (installs first)"
	@echo "make test        lint, types and tests; make test-slow adds the slow ones"
	@echo "make bench-NAME  one of: $(patsubst infra/bench/%.py,%,$(wildcard infra/bench/*.py))"

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing cytolake and its pinned dependencies into $(VENV) (about 5 GB, a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	@$(BIN)/python jobs/pipeline.py --recipe demo --set root=$(DEMO_ROOT)

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: lint
	@$(BIN)/pytest -m "not slow and not gpu"

test-slow: $(INSTALLED)
	@$(BIN)/pytest -m "slow and not gpu"

bench-%: $(INSTALLED)
	@$(BIN)/python infra/bench/$*.py

clean:
	rm -rf $(VENV) $(DEMO_ROOT) .mypy_cache .ruff_cache .pytest_cache
