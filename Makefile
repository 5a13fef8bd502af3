# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
ORACLES := .venv-oracles
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_ROOT ?= cytolake_data

.PHONY: demo test test-all docs openapi fuzz lint install clean help bench-loader bench-recall bench-map bench-nulls bench-transcriptomics bench-prompts

help:
	@echo "make demo        run the whole line on a simulated screen (installs first)"
	@echo "make test        lint, types and tests"
	@echo "make test-all    the slow tests too, 100 examples of each property, on Python 3.11 and 3.12; make fuzz: new inputs"
	@echo "make docs        build the documentation site into site/"
	@echo "make bench-NAME  one of: $(filter-out %_faults,$(patsubst infra/bench/%.py,%,$(wildcard infra/bench/*.py)))"
	@echo "make faults-NAME one of: $(patsubst infra/bench/%_faults.py,%,$(wildcard infra/bench/*_faults.py))"

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing cytolake and its pinned dependencies into $(VENV) (about 8 GB, a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	@$(BIN)/python -W ignore -c "from cytolake.embed.maps import compile_umap; compile_umap()"
	@touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	@$(BIN)/python jobs/pipeline.py --recipe demo --set root=$(DEMO_ROOT)

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: $(INSTALLED)
	@$(BIN)/python infra/run_tests.py

test-all: $(INSTALLED)
	@$(BIN)/python infra/run_tests.py --all

# The interface that programs are written against; a test compares it with the application.
openapi: $(INSTALLED)
	@$(BIN)/python -c "from cytolake.serving.api import openapi_text; print(openapi_text(), end='')" > serve/openapi.json

$(VENV)/.docs: $(INSTALLED)
	@echo "installing mkdocs, which builds the documentation"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

# Strict: a broken link or reference fails; not with --quiet, under which mkdocs counts no warning. Nothing is read from a
# network, here or by the built pages.
docs: $(VENV)/.docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file platform/docs/mkdocs.yml
	@echo "site/index.html"

# Cases that no run has tried yet, for what reads files of others.
fuzz: $(INSTALLED)
	@$(BIN)/pytest --hypothesis-profile=new_cases -m "not slow and not gpu" tests/screens

# A file named coverage.py would be taken for the package of that name by whatever a bench imports.
bench-coverage: $(INSTALLED)
	@$(BIN)/python infra/bench/interval_coverage.py

bench-%: $(INSTALLED)
	@$(BIN)/python infra/bench/$*.py

faults-%: $(INSTALLED)
	@$(BIN)/python infra/bench/$*_faults.py

# Reference implementations that benchmarks are compared with, in an environment of their own that finds all else in ours:
# one of them brings a package named `tests`. Of efaar_benchmarking's dependencies its benchmark functions need no more.
$(ORACLES)/.installed: $(INSTALLED)
	@test -x $(ORACLES)/bin/python || $(PYTHON) -m venv $(ORACLES)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' \
		> "$$($(ORACLES)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/shared.pth"
	@$(ORACLES)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt copairs
	@$(ORACLES)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps efaar_benchmarking
	@touch $@

bench-recall bench-map bench-nulls: $(ORACLES)/.installed
	@PYTHONPATH=platform $(ORACLES)/bin/python infra/bench/$(@:bench-%=%).py

$(VENV)/.scvi: $(INSTALLED)
	@echo "installing scvi-tools, which bench-transcriptomics trains"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[scvi]'
	@touch $@

bench-transcriptomics: $(VENV)/.scvi
	@$(BIN)/python infra/bench/transcriptomics.py

$(VENV)/.prompts: $(INSTALLED)
	@echo "installing the sentence model that bench-prompts reads"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench-prompts]'
	@touch $@

bench-prompts: $(VENV)/.prompts
	@$(BIN)/python infra/bench/prompts.py

# MosaicML Streaming pins an older numpy than cytolake: an environment of its own, which finds torch in ours.
$(PEERS)/.installed: $(INSTALLED)
	@echo "installing the loaders that bench-loader measures against (about 1 GB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' \
		> "$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/shared.pth"
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check mosaicml-streaming==0.13.0
	@touch $@

bench-loader: $(INSTALLED) $(PEERS)/.installed
	@$(BIN)/python infra/bench/loader.py

clean:
	rm -rf $(VENV) $(PEERS) $(ORACLES) $(DEMO_ROOT) site .mypy_cache .ruff_cache .pytest_cache
