# The same few commands for people and for CI. Only Python 3.11+ and make are needed; everything else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
TESTS ?= tests
ARGS ?=

.DEFAULT_GOAL := help
MINUTES ?= 5
SEED ?=
AGENTGOVBENCH ?=
MCP_SUITE ?=

.PHONY: help setup check test guards jaeger chaos simulate simulate-long simulate-bugs govbench conformance demo bench format lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## .venv with everything from the lock (quick when it is there; PYTHON=… picks another Python)
	@$(PYTHON) tools/setup.py

check: setup ## style, types, imports that go one way, promises about files: what must hold before a commit
	@status=0; \
	for command in "ruff check" "ruff format --check" mypy "lint-imports --no-logo" "python -m tools.checks"; do \
	    echo "+ $$command"; $(BIN)/$$command || status=1; \
	done; exit $$status

test: setup ## every test (TESTS=tests/unit ARGS='-k scope' for some)
	$(BIN)/python -m pytest $(TESTS) $(ARGS)

guards: setup ## take each guard away in a copy and see its test fail (some minutes; ARGS='--only budget')
	$(BIN)/python -m tools.prove_guards $(ARGS)

jaeger: setup ## a real Jaeger from its Go module, for the test that compares traces (minutes, once; kept in the user's cache)
	$(BIN)/python -m tools.jaeger $(ARGS)

simulate: setup ## hundreds of simulated runs of the whole broker (SEEDS=300); ARGS='--seed N' shows one
	$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),300) $(ARGS)

simulate-long: setup ## many, on all cores (SEEDS=100000)
	$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),100000) $(ARGS)

simulate-bugs: setup ## find every bug that can be planted, each within SEEDS=10000 runs
	$(BIN)/python -m tests.simulation --bugs --seeds $(or $(SEEDS),10000) $(ARGS)

chaos: setup ## kill, freeze and cut off real processes under load, then check every promise (MINUTES=30 SEED=… ARGS='--only cluster')
	$(BIN)/python -m tests.chaos.run --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

govbench: setup ## the governance scenarios of a checkout of AgentGovBench, against real brokers (AGENTGOVBENCH=DIR)
	@$(BIN)/python -m tests.conformance.govbench "$(AGENTGOVBENCH)"

conformance: setup ## the MCP suite of the protocol, directly and through Remit (MCP_SUITE=DIR, where npm installed it)
	@$(BIN)/python -m tests.conformance.mcp_suite "$(MCP_SUITE)"

demo: setup ## a task through three agents and a real MCP server, refusals, and the proof of it
	$(BIN)/remit demo $(ARGS)

bench: setup ## what a governed hop costs beside a direct call, measured now on this machine
	$(BIN)/remit bench $(ARGS)

format: setup ## rewrite the style that `check` checks
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: setup ## pin the dependencies anew (ARGS=--upgrade for newer ones)
	$(BIN)/python tools/lock.py $(ARGS)

clean: ## remove .venv, caches and builds
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist agents_sdk/dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
