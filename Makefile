# What a newcomer and the CI run. Every target makes what it needs; a second run finds it made.
# pip's own configuration (index, certificates) and PYTHON=python3.12 are respected.

PYTHON ?= python3
PYTHON_LOWEST ?= $(shell for p in python3.10 $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.10.*/bin/python; do \
    "$$p" -c '' 2>/dev/null && echo "$$p" && exit; done; echo $(PYTHON))

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1
# Every server that is started imports some thousand modules: compiled once and kept, they take a third of the time.
unexport PYTHONDONTWRITEBYTECODE

MAIN := .venv
OPENAI3 := .venv-openai3
LOWEST := .venv-lowest
LOWEST_SERVER := .venv-lowest-server
# What the tests of .venv start as programs of their own.
AUTOGEN := .venv-autogen
BACKENDS := .venv-backends

# Some of the releases in constraints.txt need Python 3.11.
MAIN_CONSTRAINTS := $(shell $(PYTHON) -c 'import sys; print("constraints.txt" if sys.version_info >= (3, 11) else "constraints-py310.txt")' 2>/dev/null)
# One for every Python, so from the oldest: see PYTHON_LOWEST.
OPENAI3_CONSTRAINTS := constraints-openai3.txt
LOWEST_CONSTRAINTS := constraints-lowest.txt
LOWEST_SERVER_CONSTRAINTS := constraints-lowest-server.txt

# What runs without a server and with no framework but openai: the client's tests, in every environment.
CLIENT_TESTS = $(filter-out tests/test_langchain% tests/test_litellm%,$(wildcard tests/test_*.py)) tests/typing
# The frameworks that are tested in their lowest versions, too, and what their tests need.
LOWEST_TESTS = $(CLIENT_TESTS) $(wildcard tests/test_langchain*.py)
# MLflow's gateway, and LiteLLM, which asks for newer packages than the lowest of the others go with. What MLflow knew of
# Databricks' costs then was less.
LOWEST_SERVER_TESTS = $(wildcard tests/test_litellm*.py) tests/server/test_mlflow_gateway.py tests/e2e/test_mlflow_gateway.py \
    tests/e2e/test_mlflow_details.py -k 'not databricks'
LOWEST_FRAMEWORKS := langchain langchain-anthropic langchain-openai langgraph aiohttp starlette uvicorn

# Modules are compiled when they are first imported: compiling all that MLflow brings takes longer than installing it.
INSTALL := -m pip install --no-compile --no-build-isolation
# What is fetched is named while it is; errors and warnings are shown as they are.
PROGRESS := awk '/^Collecting / { print "    " $$2; fflush() } /^Installing / { print "    unpacking ..."; fflush() }'

FREEZE := -m pip freeze --all --exclude setuptools --exclude-editable

# A process per processor; a file's tests stay together, since they share their servers. In the order of the folders,
# which has the long ones first: by the number of tests, files of few and long ones would be left for the end.
PYTEST := -m pytest --numprocesses=$(shell getconf _NPROCESSORS_ONLN) --dist=loadfile --no-loadscope-reorder

SHELL := /usr/bin/env bash

.DEFAULT_GOAL := help
.PHONY: help venv environments venv-backends venv-autogen demo test test-main test-openai3 test-lowest test-lowest-server test-nightly w3c bench lint types format update clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(MAIN)/.demo ## Set up, then run the whole thing on this machine and show the joined trace
	@echo "==> Running the demo"
	@$(MAIN)/bin/agent-gateway demo

test: test-openai3 test-lowest test-lowest-server test-main ## Set up, then run all tests in all environments
	@echo "==> All tests passed in all environments"

test-main: $(MAIN)/.installed $(AUTOGEN)/.installed $(BACKENDS)/.installed ## All tests, with the known-good set of packages
	@echo "==> All tests, with real servers on this machine (some minutes)"
	$(MAIN)/bin/python $(PYTEST)

test-openai3: $(OPENAI3)/.installed ## The client's tests with openai 3, where there is no httpx
	@echo "==> The client's tests with openai 3 and without httpx"
	@$(OPENAI3)/bin/python -c 'import importlib.util as u, sys; sys.exit("httpx is installed here" if u.find_spec("httpx") else 0)'
	$(OPENAI3)/bin/python $(PYTEST) $(CLIENT_TESTS)

test-lowest: $(LOWEST)/.installed ## The client's and LangChain's tests with the lowest supported versions
	@echo "==> The client's and LangChain's tests with the lowest supported versions ($(PYTHON_LOWEST))"
	$(LOWEST)/bin/python $(PYTEST) $(LOWEST_TESTS)

test-nightly: $(MAIN)/.installed ## The long runs: 10,000 canaries per gateway, an outage, a hundred thousand sets of headers, load
	NIGHTLY=1 $(MAIN)/bin/python -m pytest -o faulthandler_timeout=0 tests/server/test_canaries.py tests/server/test_random_headers.py \
	    tests/server/test_load.py tests/server/test_outage.py tests/e2e/test_canaries.py

w3c: $(MAIN)/.installed ## W3C's own conformance tests, of a checkout: make w3c TRACE_CONTEXT=../trace-context
	$(MAIN)/bin/python tests/w3c/run.py $(TRACE_CONTEXT)/test

bench: $(MAIN)/.bench ## Set up, then measure everything that benchmarks/ does, with real servers (less than 10 minutes)
	@echo "==> Measuring; the numbers mean most on a machine that does nothing else"
	$(MAIN)/bin/python -m benchmarks

test-lowest-server: $(LOWEST_SERVER)/.installed ## LiteLLM and MLflow's gateway in their lowest supported versions
	@echo "==> LiteLLM and MLflow's gateway in their lowest supported versions ($(PYTHON_LOWEST))"
	$(LOWEST_SERVER)/bin/python $(PYTEST) $(LOWEST_SERVER_TESTS)

lint: $(MAIN)/.installed ## Check style and format with ruff
	@echo "==> Checking style and format"
	@$(MAIN)/bin/ruff check
	@$(MAIN)/bin/ruff format --check

types: $(MAIN)/.installed ## Check the types with mypy --strict
	@echo "==> Checking types"
	@$(MAIN)/bin/mypy --cache-dir $(MAIN)/.mypy_cache

format: $(MAIN)/.installed ## Rewrite the code to the project's format
	@$(MAIN)/bin/ruff check --fix
	@$(MAIN)/bin/ruff format

venv: $(MAIN)/.installed ## Only set up .venv
	@echo "==> Ready: . $(MAIN)/bin/activate"

environments: $(MAIN)/.installed $(OPENAI3)/.installed $(LOWEST)/.installed $(LOWEST_SERVER)/.installed $(AUTOGEN)/.installed $(BACKENDS)/.installed ## Only set up all environments

venv-backends: $(BACKENDS)/.installed ## Only set up .venv-backends: a collector and Arize Phoenix, which some tests start

venv-autogen: $(AUTOGEN)/.installed ## Only set up .venv-autogen: the framework that has to be apart from MLflow's server

update: clean ## Take the newest versions of everything into the constraints files (not the lowest ones)
	@$(MAKE) $(MAIN)/.installed MAIN_CONSTRAINTS=/dev/null
	@$(MAKE) $(OPENAI3)/.installed OPENAI3_CONSTRAINTS=/dev/null PYTHON=$(PYTHON_LOWEST)
	@$(MAIN)/bin/python $(FREEZE) > $(MAIN_CONSTRAINTS)
	@$(OPENAI3)/bin/python $(FREEZE) > $(OPENAI3_CONSTRAINTS)

clean: ## Remove the environments and all that was built
	@echo "==> Removing environments, builds and caches"
	@rm -rf $(MAIN) $(OPENAI3) $(LOWEST) $(LOWEST_SERVER) $(AUTOGEN) $(BACKENDS) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(MAIN)/.demo: pyproject.toml $(MAIN_CONSTRAINTS)
	@$(call create,$(PYTHON),$(MAIN),$(MAIN_CONSTRAINTS))
	@echo "==> Installing what the demo needs into $(MAIN) (about 125 packages; less than a minute)"
	@set -o pipefail; $(MAIN)/bin/python $(INSTALL) --constraint $(MAIN_CONSTRAINTS) --editable '.[openai,litellm,mlflow-gateway,cli]' | $(PROGRESS)
	@touch $@

$(MAIN)/.installed: pyproject.toml $(MAIN_CONSTRAINTS)
	@$(call create,$(PYTHON),$(MAIN),$(MAIN_CONSTRAINTS))
	@echo "==> Installing everything into $(MAIN) (about 190 packages; less than a minute)"
	@set -o pipefail; $(MAIN)/bin/python $(INSTALL) --constraint $(MAIN_CONSTRAINTS) --editable '.[all]' --group dev | $(PROGRESS)
	@touch $(MAIN)/.demo $@

$(MAIN)/.bench: $(MAIN)/.installed
	@echo "==> Installing what the benchmarks compare with into $(MAIN)"
	@set -o pipefail; $(MAIN)/bin/python $(INSTALL) --constraint $(MAIN_CONSTRAINTS) --group bench | $(PROGRESS)
	@touch $@

$(OPENAI3)/.installed: pyproject.toml $(OPENAI3_CONSTRAINTS)
	@$(call create,$(PYTHON),$(OPENAI3),$(OPENAI3_CONSTRAINTS))
	@echo "==> Installing the client with openai 3 into $(OPENAI3)"
	@set -o pipefail; $(OPENAI3)/bin/python $(INSTALL) --constraint $(OPENAI3_CONSTRAINTS) --editable . 'openai>=3' --group test | $(PROGRESS)
	@touch $@

$(LOWEST)/.installed: pyproject.toml $(LOWEST_CONSTRAINTS)
	@$(call create,$(PYTHON_LOWEST),$(LOWEST),$(LOWEST_CONSTRAINTS))
	@echo "==> Installing the client with the lowest supported versions into $(LOWEST)"
	@set -o pipefail; $(LOWEST)/bin/python $(INSTALL) --constraint $(LOWEST_CONSTRAINTS) --editable '.[openai,langchain]' --group test $(LOWEST_FRAMEWORKS) | $(PROGRESS)
	@touch $@

$(LOWEST_SERVER)/.installed: pyproject.toml $(LOWEST_SERVER_CONSTRAINTS)
	@$(call create,$(PYTHON_LOWEST),$(LOWEST_SERVER),$(LOWEST_SERVER_CONSTRAINTS))
	@echo "==> Installing the lowest supported versions of LiteLLM and MLflow into $(LOWEST_SERVER)"
	@set -o pipefail; $(LOWEST_SERVER)/bin/python $(INSTALL) --constraint $(LOWEST_SERVER_CONSTRAINTS) --editable '.[openai,litellm,mlflow-gateway,cli]' --group test 'litellm[proxy]' | $(PROGRESS)
	@touch $@

$(AUTOGEN)/.installed: pyproject.toml constraints-autogen.txt
	@$(call create,$(PYTHON),$(AUTOGEN),constraints-autogen.txt)
	@echo "==> Installing AutoGen into $(AUTOGEN)"
	@set -o pipefail; $(AUTOGEN)/bin/python $(INSTALL) --constraint constraints-autogen.txt --editable . --group autogen | $(PROGRESS)
	@touch $@

$(BACKENDS)/.installed: pyproject.toml constraints-backends.txt
	@$(call create,$(PYTHON),$(BACKENDS),constraints-backends.txt)
	@echo "==> Installing an OpenTelemetry collector and Arize Phoenix into $(BACKENDS) (about 110 packages)"
	@set -o pipefail; $(BACKENDS)/bin/python $(INSTALL) --constraint constraints-backends.txt --group backends | $(PROGRESS)
	@touch $@

# create(python, environment, constraints): an environment with a pip that knows dependency groups, and the build backend.
define create
set -e; \
$(1) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one: make PYTHON=python3.12")'; \
test -x $(2)/bin/pip || { \
  echo "==> Creating $(2) with $$($(1) --version)"; \
  $(1) -m venv $(2) || { rm -rf $(2); exit 1; }; \
}; \
$(2)/bin/python -m pip install --quiet --constraint $(3) --upgrade pip hatchling editables
endef
