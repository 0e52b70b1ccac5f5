# A fresh machine needs two commands: `make demo` and `make test`. Each sets the environment up if there is none.
PYTHON ?= python3
VENV   ?= .venv
PY      = $(VENV)/bin/python
QUIET   = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: setup demo test lint bench bench-check clean

setup:
	@$(PYTHON) cluster/install.py --venv $(VENV)

demo: setup
	@$(QUIET) $(PY) -m rl.demo

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports --no-cache

test: lint
	@$(QUIET) $(PY) -m pytest

bench: setup
	@$(QUIET) $(PY) -m tests.bench

bench-check: setup
	@$(QUIET) $(PY) -m tests.bench --check

clean:
	rm -rf $(VENV) .venv-trl runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
