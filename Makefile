# Run `make` for a list. Everything lives in .venv and node_modules; system packages (real Redis,
# PostgreSQL, nginx, Chromium and Firefox for the tests) come from Debian.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLIENT := clients/typescript
BUNDLE := messagebusd/browser/client.js
PYTEST := $(BIN)/python -m pytest
# Compiled modules are kept, wherever this runs: without them every daemon that a test starts compiles
# itself, and pytest its tests, which is a third of what the fast ones take.
export PYTHONDONTWRITEBYTECODE :=
# Tests mostly wait: for servers, and for the interpreter to start.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

.PHONY: run
run: install ## Set everything up and serve on the embedded store
	$(BIN)/messagebusd serve --config config/bus.toml

.PHONY: demo
demo: install ## Set everything up and serve the demo chat
	$(BIN)/messagebusd demo

.PHONY: install
install: node_modules/.installed $(VENV)/.installed $(BUNDLE) ## Make the Python environment, build the browser client

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv is missing: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

$(VENV)/.deploy: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group deploy
	@touch $@

$(VENV)/.bench: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group bench
	@touch $@

$(VENV)/.release: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group release
	@touch $@

node_modules/.installed: package.json package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing: apt-get install npm" >&2; exit 1; }
	npm ci --silent --no-audit --no-fund
	@touch $@

$(CLIENT)/node_modules/.installed: $(CLIENT)/package.json $(CLIENT)/package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing: apt-get install npm" >&2; exit 1; }
	cd $(CLIENT) && npm ci --silent --no-audit --no-fund
	@touch $@

$(BUNDLE): $(CLIENT)/node_modules/.installed $(CLIENT)/build.mjs $(CLIENT)/tsconfig.json $(shell find $(CLIENT)/source -name '*.ts')
	cd $(CLIENT) && npm run --silent build && npm run --silent vendor
	@touch $@

.PHONY: clients
clients: $(BUNDLE) ## Build the clients; the daemon serves the browser's from messagebusd/browser

.PHONY: clients-test
clients-test: install ## Run the clients' own tests
	cd $(CLIENT) && npm test

DOCS ?= build/docs
.PHONY: clients-docs
clients-docs: install ## Build the references of the clients into build/docs; fails where something lacks its own
	cd $(CLIENT) && npm run --silent docs -- --out $(abspath $(DOCS))/typescript
	$(BIN)/ruff check --quiet --select D101,D102,D103 clients/python/messagebus_client
	cd clients/python && $(abspath $(BIN))/python -W error -m pdoc messagebus_client --output-directory $(abspath $(DOCS))/python
	rdoc --quiet --coverage-report clients/ruby/lib
	rdoc --quiet --main README.md --root clients/ruby --output $(DOCS)/ruby clients/ruby/lib clients/ruby/README.md

.PHONY: packages
packages: ## Install the system packages that the tests need (asks for sudo unless root)
	@deploy/install-test-packages.sh

.PHONY: test
test: packages install $(VENV)/.deploy $(VENV)/.bench $(VENV)/.release ## Set everything up and run every test
	$(PYTEST) tests clients/python/tests $(PARALLEL)

.PHONY: unit
unit: install ## Run the fast tests: no servers, no browser
	HYPOTHESIS_PROFILE=quick $(PYTEST) tests/unit tests/backends/test_memory.py \
		tests/test_floors.py clients/python/tests -q $(PARALLEL)

.PHONY: check
check: install ## Format, lint, types, floors
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(PYTEST) tests/test_floors.py -q

.PHONY: format
format: install ## Format the code and mend what ruff can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.PHONY: docs
docs: install ## Write the sample configuration and docs/configuration.md anew from the settings
	$(BIN)/python -m messagebusd.settings.reference sample > config/bus.toml
	$(BIN)/python -m messagebusd.settings.reference markdown > docs/configuration.md

.PHONY: docs-tests
docs-tests: packages install ## Run what the documentation shows
	$(PYTEST) tests/docs tests/hosts $(PARALLEL)

.PHONY: deploy-tests
deploy-tests: packages install $(VENV)/.deploy $(VENV)/.release ## Run what is shipped in deploy/: proxies, units, chart
	$(PYTEST) tests/deploy

.PHONY: conformance
conformance: install ## Run the recorded scenarios of the original against the daemon
	$(PYTEST) tests/conformance

.PHONY: fuzz
fuzz: install ## Fuzz the parsers for five minutes
	FUZZ_SECONDS=300 $(PYTEST) tests/fuzz --timeout 900

.PHONY: bench
bench: install ## Measure parked memory, fan-out, polls and publishes
	$(BIN)/python -m bench

.PHONY: bench-peers
bench-peers: install $(VENV)/.bench ## The same beside nchan and the Ruby library, as far as they are there
	$(BIN)/python -m bench --peers

SECONDS ?= 600
.PHONY: soak
soak: packages install ## Soak all stores in load and faults: ten minutes, or SECONDS=3600
	$(BIN)/python -m tests.soak --seconds $(SECONDS)

.PHONY: build
build: install $(VENV)/.release ## Build what is released into dist/: packages, SBOMs, checksums
	rm -rf dist
	deploy/build-release.sh $(BIN)/python dist

.PHONY: clean
clean: ## Remove everything that make made
	rm -rf $(VENV) node_modules messagebusd/browser dist build $(addprefix $(CLIENT)/,node_modules dist build) .mypy_cache .ruff_cache .pytest_cache .hypothesis
