# Each target does one thing and sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
RUNTIME := .venv/runtime.stamp
DEVELOPMENT := .venv/development.stamp
EXAMPLE := examples/react/node_modules/.package-lock.json
BROWSER := tests/browser/node_modules/.package-lock.json
FRONTS := $(patsubst %,%/node_modules/.package-lock.json,$(addprefix examples/,ai-sdk assistant-ui tanstack-ai) \
	$(addprefix tests/browser/,ai-5 ai-6))
CONTAINER := .venv/container.stamp
CLIENTS := .venv/clients.stamp
LIBRARIES := tests/clients/node_modules/.package-lock.json
DOCKER ?= docker
CHATS ?= 60
SEED ?= 1
MEASURED := COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml COVERAGE_FILE=$(CURDIR)/.coverage
TIMED := tests/test_fairness.py  # it bounds processor time, of which coverage takes its part
PIP := pip install --quiet --disable-pip-version-check

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-15s %s\n", $$1, $$2}'

demo: $(RUNTIME)  ## run against the stand-in: no key, no network
	@exec $(BIN)/python server.py --demo

run: $(RUNTIME)  ## run with the settings of .env and the environment
	@exec $(BIN)/python server.py

react: $(EXAMPLE)  ## run the React example on http://localhost:5173, beside `make demo`
	@exec npm run dev --prefix examples/react

test: $(DEVELOPMENT)  ## all tests of the service, on each engine those that an engine decides; and what they don't reach
	$(BIN)/coverage erase
	$(MEASURED) $(BIN)/pytest -n 4 --ignore $(TIMED)
	$(BIN)/pytest -n 2 $(TIMED)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-valkey: $(DEVELOPMENT)  ## what a shared server decides, on Valkey; `make test` takes Debian's Redis if it is there
	$(BIN)/pytest -n 4 --server valkey --store valkey

campaign: $(DEVELOPMENT)  ## relays and their server are killed for minutes; SEED=, CHATS=
	$(BIN)/pytest tests/test_replica_campaign.py --chats $(CHATS) --seed $(SEED)
	$(BIN)/pytest tests/test_replicas.py -k first_requests --rounds 1000

fuzz: $(DEVELOPMENT)  ## the contract and all else that takes random data, with other data than `make test` has
	$(BIN)/pytest -n 4 --fuzz 200 tests/test_fuzzed_contract.py $(shell grep -l hypothesis tests/test_*.py tests/http/test_*.py)

test-browser: $(RUNTIME) $(EXAMPLE) $(FRONTS) $(BROWSER)  ## the examples and the pages of the API in a real browser
	tests/browser/install
	npm test --silent --prefix tests/browser

test-clients: $(CLIENTS) $(LIBRARIES)  ## the libraries that read the stream, each the real one, over a network that breaks
	tests/clients/install
	$(BIN)/pytest tests/clients -n 3 --dist loadfile

check: $(DEVELOPMENT)  ## formatter, linters, types; the Lua scripts, too, where luacheck is installed (Debian: lua-check)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .
	@if command -v luacheck >/dev/null; then luacheck --quiet --no-color stores/valkey/*.lua; else echo "luacheck isn't installed"; fi

format: $(DEVELOPMENT)  ## put the code in shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(RUNTIME)  ## measure it beside its alternatives; BENCH=--full for half an hour of it
	$(BIN)/python -m benchmarks $(BENCH)

soak: $(DEVELOPMENT)  ## some minutes of load, and the memory before and after
	$(BIN)/python -m tests.soak

crash: $(DEVELOPMENT)  ## kill it 150 times in the middle of anything, and see what it remembers
	$(BIN)/python -m tests.crash

lock: $(CONTAINER)  ## write requirements.lock: everything that requirements.txt brings, with hashes
	$(BIN)/uv pip compile requirements.txt --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--no-config --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--output-file requirements.lock >/dev/null
	sed -n '/^valkey/p' requirements-valkey.txt | $(BIN)/uv pip compile - --quiet --universal --python-version 3.11 \
		--generate-hashes --upgrade --no-config --no-emit-index-url --no-emit-find-links \
		--custom-compile-command "make lock" --output-file requirements-valkey.lock >/dev/null

audit: $(CONTAINER)  ## known vulnerabilities of what is locked; fails, too, where no service can tell
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --requirement requirements.lock \
		--requirement requirements-valkey.lock

image:  ## build the container image; DOCKER=podman for Podman
	BUILDAH_FORMAT=docker $(DOCKER) build --tag chat-relay --build-arg REVISION="$$(git rev-parse HEAD)" .

test-container: $(CONTAINER)  ## the image, compose.yaml, the manifests and the proxies, for real; Debian 12, as root
	tests/container/install
	$(BIN)/pytest tests/container

clean:  ## forget the virtual environments and caches
	rm -rf .coverage* .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(RUNTIME): requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/$(PIP) -r requirements.txt
	@touch $@

$(DEVELOPMENT): requirements-dev.txt $(RUNTIME)
	$(BIN)/$(PIP) -r requirements-dev.txt
	@touch $@

%/node_modules/.package-lock.json: %/package-lock.json
	npm ci --silent --prefix $*
	@touch $@

$(CONTAINER): tests/container/requirements.txt $(DEVELOPMENT)
	$(BIN)/$(PIP) -r tests/container/requirements.txt
	@touch $@

$(CLIENTS): tests/clients/requirements.txt $(DEVELOPMENT)
	$(BIN)/$(PIP) -r tests/clients/requirements.txt
	@touch $@

.PHONY: help demo run react test test-valkey campaign fuzz test-browser test-clients check format bench soak crash lock audit image \
	test-container clean
