# Everything a contributor types. The virtual environment lives in .venv (VENV=... to choose another).
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: setup demo test test-quick soak check bench clean

setup: $(STAMP)

OLD = "Python 3.11 or later is needed, $(PYTHON) is " + sys.version.split()[0] + ": make setup PYTHON=python3.11"

$(STAMP): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and $(OLD))'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	touch $@

# The whole pipeline on a small problem: no GPU, no account, no data, no Slurm.
demo: setup
	$(BIN)/python launch_train.py -c configs/quickstart.yml --project demo --cluster local
	@echo "To type commands yourself, first, once in a shell:  source $(BIN)/activate"

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

# What a change of configs, plans, data, models or reports may break: under 90 seconds on 2 cores.
test-quick: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not slurm and not native and not omniglot" $(TESTS)

# 200 experiments on a real Slurm under 20 minutes of random faults; run again, it goes on where it was stopped.
SOAK ?= /tmp/anml-soak
soak: setup
	PYTHONPATH=. $(BIN)/python -m tests.slurm.soak --folder $(SOAK)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: setup
	PYTHONPATH=. $(BIN)/python benchmarks/train_engines.py
	PYTHONPATH=. $(BIN)/python benchmarks/evaluate_engines.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
