# What a newcomer and the CI run. Every target makes the environments that it needs; a second run finds them made.
# constraints/environments.json describes the environments. PYTHON=python3.12 and pip's own configuration (index,
# certificates) are respected; WITHOUT_UV=1 installs with pip alone.

PYTHON ?= python3
ENVIRONMENTS := @$(PYTHON) constraints/environments.py
IN_MAIN := $(ENVIRONMENTS) run main
ALL := main quick openai3 lowest lowest-server newest agents autogen crewai backends

# Every server imports thousands of modules; with cached bytecode, that takes a third of the time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo quick check test test-all test-main test-beside w3c bench docs lint types format environments environments-list build update clean \
    test-openai3 test-lowest test-lowest-server test-lowest-proxy test-newest test-newest-http test-py312 test-py313 test-py314 \
    test-nightly venv venv-agents venv-autogen venv-crewai venv-backends

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Set up, then run the whole thing on this machine and show the joined trace
	$(ENVIRONMENTS) run demo agent-gateway demo

quick: ## Set up a small environment, then run the unit tests that need no server (half a minute)
	$(ENVIRONMENTS) test quick

check: lint types ## Style, types and all unit tests (3 minutes)
	$(ENVIRONMENTS) test unit

test: ## All tests in the main environment, with real servers on this machine
	$(ENVIRONMENTS) test main

test-main: test ## The same

test-beside: ## Tests that start programs of other environments: more frameworks, a collector, Phoenix
	$(ENVIRONMENTS) test beside

test-openai3: ## The client's tests with openai 3, where there is no httpx
	$(ENVIRONMENTS) test openai3

test-lowest: ## The client's and LangChain's tests with the lowest supported versions
	$(ENVIRONMENTS) test lowest

test-lowest-server: ## LiteLLM and MLflow's gateway in their lowest supported versions
	$(ENVIRONMENTS) test lowest-server

test-lowest-proxy: ## LiteLLM Proxy in its lowest supported version, on Python 3.11
	$(ENVIRONMENTS) test lowest-proxy

test-newest: ## The client's tests and the gateways' with the newest releases that the index has
	$(ENVIRONMENTS) test newest

test-newest-http: ## The client's tests with the newest HTTP libraries
	$(ENVIRONMENTS) test newest-http

test-py312: ## The client's tests on Python 3.12
	$(ENVIRONMENTS) test py312

test-py313: ## The client's tests on Python 3.13
	$(ENVIRONMENTS) test py313

test-py314: ## The client's tests on Python 3.14
	$(ENVIRONMENTS) test py314

test-all: test-openai3 test-lowest test-lowest-server test-newest test-beside test ## All tests in all environments for which this machine has the Python

test-nightly: ## The long runs: 10,000 canaries per gateway, an outage, a hundred thousand sets of headers, load
	$(ENVIRONMENTS) test nightly

w3c: ## W3C's own conformance tests, of a checkout: make w3c TRACE_CONTEXT=../trace-context
	$(IN_MAIN) python tests/w3c/run.py $(TRACE_CONTEXT)/test

bench: ## Set up, then measure everything that benchmarks/ does, with real servers (ten minutes)
	@echo "==> Measuring; the numbers mean most on a machine that does nothing else"
	$(ENVIRONMENTS) make backends
	$(ENVIRONMENTS) run bench python -m benchmarks

# Without the advertisement for its successor.
docs: export NO_MKDOCS_2_WARNING = 1
docs: ## Build the documentation site into build/site/ and fail on a broken link
	$(ENVIRONMENTS) run docs mkdocs build --strict

lint: ## Check style and format with ruff
	$(IN_MAIN) ruff check
	$(IN_MAIN) ruff format --check

types: ## Check the types with mypy --strict
	$(IN_MAIN) mypy --num-workers auto --cache-dir .venv/.mypy_cache
	$(IN_MAIN) mypy --cache-dir .venv/.mypy_cache constraints hatch_build.py

format: ## Rewrite the code to the project's format
	$(IN_MAIN) ruff check --fix
	$(IN_MAIN) ruff format

venv: ## Only set up .venv, the main environment
	$(ENVIRONMENTS) make main

venv-backends: ## Only set up .venv-backends: a collector and Arize Phoenix, which some tests start
	$(ENVIRONMENTS) make backends

venv-agents: ## Only set up .venv-agents: frameworks with the client alone, which some tests start
	$(ENVIRONMENTS) make agents

venv-autogen: ## Only set up .venv-autogen: a framework that conflicts with MLflow's server
	$(ENVIRONMENTS) make autogen

venv-crewai: ## Only set up .venv-crewai: a framework that conflicts with LiteLLM Proxy
	$(ENVIRONMENTS) make crewai

environments: ## Only set up all environments, in parallel
	$(ENVIRONMENTS) make $(ALL)

environments-list: ## Show all environments, and which are set up
	$(ENVIRONMENTS) list

build: ## Build the sdist and the wheel into dist/, in the small environment
	@rm -rf dist
	$(ENVIRONMENTS) run quick python -m hatchling build --directory dist

update: ## Update the constraints files to the newest versions (except the lowest ones)
	$(ENVIRONMENTS) remove main openai3
	$(ENVIRONMENTS) make --unconstrained main openai3
	$(ENVIRONMENTS) freeze main openai3

clean: ## Remove the environments and everything that was built
	@echo "==> Removing environments, builds and caches"
	@rm -rf .venv .venv-* build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
