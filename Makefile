# make help lists the commands. Nothing is needed beforehand but Python 3.11 or newer and make.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
WORKERS ?= 2
export TF_CPP_MIN_LOG_LEVEL ?= 3
export PYTHONWARNINGS ?= ignore::UserWarning:papermill
export JUPYTER_PLATFORM_DIRS ?= 1

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

.PHONY: env
env: .venv/.complete  ## the virtual environment, from the locked requirements (made by the others when needed)

.venv/.complete: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "hpacell needs Python 3.11, 3.12 or 3.13 and found none: install one, or run make PYTHON=/path/to/python" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@command -v uv >/dev/null || $(BIN)/python -m pip install -q uv || echo "uv cannot be had here: pip does the same, slower"
	@uv=$$(command -v uv || ls $(BIN)/uv 2>/dev/null || true); \
	if [ -n "$$uv" ] && $$uv pip install -q --python $(BIN)/python --require-hashes -r requirements.lock; then :; \
	else $(BIN)/python -m pip install -q --require-hashes -r requirements.lock; fi
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: demo
demo: env  ## the whole road on simulated fields, in a few minutes; says where the report is
	@$(BIN)/hpacell demo

.PHONY: test
test: env  ## every lesson of the notebooks, then every test but the slow ones: 15 minutes on two quiet cores, an hour on busy ones
	$(BIN)/nbdev-test nbs --n-workers $(WORKERS) --skip-folder-re '^(workflows|tutorials|_docs|\.ipynb_checkpoints)$$' --skip-file-re '^index'
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: test-all
test-all: env  ## the slow tests too
	$(BIN)/nbdev-test nbs --n-workers $(WORKERS) --skip-folder-re '^(workflows|tutorials|_docs|\.ipynb_checkpoints)$$' --skip-file-re '^index' --flags slow
	HYPOTHESIS_PROFILE=random $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m ''

.PHONY: test-variants
test-variants: env  ## tests of numbers and exits with oneDNN off and on, 1 and 2 threads: hours; VARIANTS="unet --times 5" chooses
	$(BIN)/python tests/variants.py $(VARIANTS)

.PHONY: torture
torture: env  ## kills, damage, full disks, two commands at once and more, on real processes: half an hour
	$(BIN)/python tests/torture.py
	$(BIN)/python tests/pairs.py

.PHONY: lab
lab: env  ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab --notebook-dir nbs

.PHONY: export
export: env  ## notebooks -> hpacell/ and README.md
	@$(BIN)/nbdev-export
	@$(BIN)/python nbs/readme.py

.PHONY: clean-notebooks
clean-notebooks: env  ## strip what does not belong into a commit: metadata of notebooks, outputs of workflows
	@$(BIN)/nbdev-clean
	@$(BIN)/nbstripout --keep-id nbs/workflows/*.ipynb

.PHONY: check
check: clean-notebooks export  ## clean and export leave no difference; ruff finds nothing
	@git diff --exit-code --stat -- nbs hpacell README.md || { echo "commit what make export and make clean-notebooks changed" >&2; exit 1; }
	@$(BIN)/ruff check nbs tests benchmarks

.PHONY: docs
docs: env  ## the HTML site from the notebooks, into _docs/
	@$(BIN)/sphinx-build -q -b html nbs _docs
	@echo "_docs/index.html"

.PHONY: bench
bench: env  ## timings and accuracy, as JSON in benchmarks/results
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

.PHONY: lock
lock: env  ## requirements.lock from pyproject.toml: names, versions and hashes, no addresses
	@$(BIN)/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links -q -o requirements.lock
