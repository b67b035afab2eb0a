# Each target does one thing and sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
RUNTIME := .venv/runtime.stamp
DEVELOPMENT := .venv/development.stamp
FAST := .venv-fast/development.stamp
PIP := pip install --quiet --disable-pip-version-check

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-15s %s\n", $$1, $$2}'

demo: $(RUNTIME)  ## run against the stand-in: no key, no network
	@exec $(BIN)/python server.py --demo

run: $(RUNTIME)  ## run with the settings of .env and the environment
	@exec $(BIN)/python server.py

test: $(DEVELOPMENT)  ## all tests of the service
	$(BIN)/pytest -n 4

test-fast: $(FAST)  ## the same with the accelerator of requirements-fast.txt
	.venv-fast/bin/pytest -n 4

check: $(DEVELOPMENT)  ## formatter, linter, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .

format: $(DEVELOPMENT)  ## put the code in shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(RUNTIME)  ## measure it beside its alternatives; BENCH=--full for half an hour of it
	$(BIN)/python -m benchmarks $(BENCH)

soak: $(DEVELOPMENT)  ## some minutes of load, and the memory before and after
	$(BIN)/python -m tests.soak

clean:  ## forget the virtual environments and caches
	rm -rf .venv .venv-fast .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(RUNTIME): requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/$(PIP) -r requirements.txt
	@touch $@

$(DEVELOPMENT): requirements-dev.txt $(RUNTIME)
	$(BIN)/$(PIP) -r requirements-dev.txt
	@touch $@

$(FAST): requirements-dev.txt requirements-fast.txt
	$(PYTHON) -m venv .venv-fast
	.venv-fast/bin/$(PIP) -r requirements-dev.txt -r requirements-fast.txt
	@touch $@

.PHONY: help demo run test test-fast check format bench soak clean
