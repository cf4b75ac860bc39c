# One command per habit, the same here and in CI. `make help` lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP   := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
# The newest Python that is 3.11 or newer; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

.PHONY: help
help: ## list the commands
	@echo "Homeport: a service registry you can import. The commands:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-22s %s\n", $$1, $$2 }'

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "homeport needs Python 3.11 or newer, and none is on the PATH: install python3.11, or say make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "homeport needs Python 3.11 or newer; $(PYTHON) is older"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no ensurepip: install its venv package (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "homeport: creating $(VENV) with $$($(PYTHON) --version) and installing (wheels only) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --only-binary :all: -c constraints.txt "pip>=25.1"
	@PIP_CONSTRAINT=constraints.txt $(PIP) install --only-binary :all: --editable . --group dev
	@touch $@

.PHONY: install
install: $(STAMP) ## create .venv and install everything that needs no root

.PHONY: demo
demo: $(STAMP) ## five microservices, sidecars, load, kills: the whole path in a minute
	@$(BIN)/homeport demo

COVERAGE := $(if $(COV),--cov --cov-report=term:skip-covered)

.PHONY: test
test: $(STAMP) ## every test that needs only Python (5 minutes at most; COV=1 reports coverage)
	@echo "homeport: running the tests that need only Python ..."
	@$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not peers and not long" $(COVERAGE)

# python-consul2 and py-consul are both imported as `consul`, so the one has a folder of its own.
CONSUL2 := $(VENV)/peers-consul2
$(CONSUL2)/.installed: pyproject.toml constraints.txt $(STAMP)
	@rm -rf $(CONSUL2)
	@PIP_CONSTRAINT=constraints.txt $(PIP) install --only-binary :all: --target $(CONSUL2) --group peers-consul2
	@touch $@

.PHONY: peers
peers: $(STAMP) $(CONSUL2)/.installed
	@PIP_CONSTRAINT=constraints.txt $(PIP) install --only-binary :all: --editable ".[peers]"

.PHONY: test-peers
test-peers: peers ## tests against real foreign clients and servers (installs the Python ones)
	@$(BIN)/python -m pytest -q -m "peers and not long"

.PHONY: test-long
test-long: $(STAMP) ## crash, fuzz and seed searches (LONG=slice for the bounded share that CI runs)
	@$(BIN)/python -m pytest -q -n auto -m long

SEEDS ?= 1000
FIRST ?= 1
.PHONY: simulate
simulate: $(STAMP) ## whole clusters in virtual time, a random life for each seed (SEEDS=1000 FIRST=1), on all cores
	@$(BIN)/python -m homeport.mesh.simulation --seeds $(SEEDS) --first $(FIRST)

.PHONY: keep-seed
keep-seed: $(STAMP) ## make a regression test of a seed that fails, shortened (SEED=n)
	@$(BIN)/python -m homeport.mesh.simulation --first $(SEED) --keep tests/simulation/regressions/seed-$(SEED).json

TARGET ?= http1_requests
SECONDS ?= 60
.PHONY: fuzz
fuzz: $(STAMP) ## coverage-guided fuzzing of one target (TARGET=http1_requests SECONDS=60; targets: tests/fuzz/targets)
	@PIP_CONSTRAINT=constraints.txt $(PIP) install --only-binary :all: --group fuzz
	@$(BIN)/python -m tests.fuzz $(TARGET) $(SECONDS)

MINUTES ?= 60
.PHONY: soak
soak: $(STAMP) ## real processes under load and random faults for MINUTES=60: memory, descriptors and tasks stay flat
	@$(BIN)/python -m tests.soak $(MINUTES)

.PHONY: check
check: $(STAMP) ## lint, format, types, layers, package contents
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/project

# PyPI's pyright fetches node and itself from elsewhere; npm's is the whole thing.
PYRIGHT := 1.1.414
TYPES := $(VENV)/pyright/$(PYRIGHT)
$(TYPES): $(STAMP)
	@npm install --silent --no-audit --no-fund --prefix $@ pyright@$(PYRIGHT)
	@touch $@

.PHONY: types
types: $(STAMP) ## types for whoever uses the library: asserted ones by pyright, and all of them complete (needs node)
	@if command -v npm >/dev/null; then $(MAKE) -s $(TYPES) && $(BIN)/python -m tests.typing $(TYPES)/node_modules/.bin/pyright; \
	elif [ "$$HOMEPORT_REQUIRE" = peers ]; then echo "homeport: make types needs node and npm"; exit 1; \
	else echo "homeport: SKIPPED make types: it needs node and npm (Debian: apt-get install nodejs npm)"; fi

DOCS := $(VENV)/.docs
$(DOCS): $(STAMP)
	@PIP_CONSTRAINT=constraints.txt $(PIP) install --only-binary :all: --group docs
	@touch $@

.PHONY: docs
docs: $(DOCS) ## the documentation as pages, in docs/_build; a warning is an error
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -j auto -b dirhtml docs docs/_build

.PHONY: format
format: $(STAMP) ## format the code and fix what can be fixed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: bench-peers
bench-peers: $(STAMP) ## install what the benchmarks measure beside (Debian and PyPI packages; needs root for Debian's)
	@apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(BENCH_DEBIAN)
	@PIP_CONSTRAINT=constraints.txt $(PIP) install --only-binary :all: --group bench-peers

BENCH_DEBIAN := wrk nginx-light haproxy caddy etcd-server zookeeper redis-server redis-tools dnsmasq-base dnsperf

.PHONY: bench
bench: $(STAMP) ## every benchmark, with the pictures and the tables made from them (some 24 minutes, 7 GiB of memory)
	@failed=0; $(BIN)/python -m benchmarks all --results benchmarks/results || failed=$$?; \
	$(BIN)/python -m benchmarks.drawing && exit $$failed

.PHONY: bench-cluster
bench-cluster: $(STAMP) ## three replicas over an etcd for twice ten minutes, and a million instances simulated
	@$(BIN)/python -m benchmarks million cluster --results benchmarks/results
	@$(BIN)/python -m benchmarks.million.page
	@$(BIN)/python -m benchmarks.drawing

.PHONY: bench-quick
bench-quick: $(STAMP) ## what README shows, in some two minutes, beside the peers that are installed
	@$(BIN)/python -m benchmarks all --quick

.PHONY: profile
profile: $(STAMP) ## flame graphs of the three hottest paths, into docs/profile.md (needs what bench-peers installs)
	@$(BIN)/python -m benchmarks.profile

.PHONY: clean
clean: ## remove .venv and caches
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build docs/_build
