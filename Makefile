PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint clean

demo: .venv/demo
	$(BIN)/python -m demo

test: .venv/test
	$(BIN)/python -m pytest -n auto

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch comes first and alone, so that nothing else decides which build of it is installed.
.venv/torch: constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	touch $@

.venv/demo: .venv/torch pyproject.toml
	$(PIP) --editable '.[demo]'
	touch $@

.venv/test: .venv/torch pyproject.toml tests/peers.txt
	$(PIP) --editable '.[test,lint]'
	$(PIP) --no-deps --requirement tests/peers.txt
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
