# Each target does one thing and sets up what it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin
RUNTIME := .venv/runtime.stamp
DEVELOPMENT := .venv/development.stamp

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-14s %s\n", $$1, $$2}'

demo: $(RUNTIME)  ## run against the stand-in: no key, no network
	@exec $(BIN)/python server.py --demo

run: $(RUNTIME)  ## run with the settings of .env and the environment
	@exec $(BIN)/python server.py

test: $(DEVELOPMENT)  ## all tests
	$(BIN)/pytest -n 4

check: $(DEVELOPMENT)  ## formatter, linter, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .

format: $(DEVELOPMENT)  ## put the code in shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## forget .venv and caches
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(RUNTIME): requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(DEVELOPMENT): requirements-dev.txt $(RUNTIME)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.PHONY: help demo run test check format clean
