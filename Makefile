# make demo and make test need CPython 3.11 or later (with venv and pip) and make, nothing else.
#
#   make test PYTHON=python3.13 VENV=.venv-3.13     another interpreter, in an environment of its own

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

bin := $(VENV)/bin
needs_python := 3.11

# Each stamp stands for an environment: with pip, with the package, with what the tests need, with all
# tools.
made := $(VENV)/.stamp-made
installed := $(VENV)/.stamp-installed
testable := $(VENV)/.stamp-testable
equipped := $(VENV)/.stamp-equipped

.PHONY: help demo test quick chaos kept calls mutants lint bench docs site clean check-python check-venv
.DEFAULT_GOAL := help

help: ## show this list
	@echo "usage: make TARGET [PYTHON=python3] [VENV=.venv] [ARGS=...]"
	@echo
	@sed -n 's/^\([a-z]*\):.*## /  \1\t/p' Makefile | expand -t 10

demo: check-venv $(installed) ## serve the Mandelbrot set with one worker, then with one per core
	@$(bin)/python examples/demo.py $(ARGS)

test: check-venv $(testable) ## run all tests (ARGS="-k upper" chooses some)
	$(bin)/python -m pytest $(ARGS)

quick: check-venv $(testable) ## run the tests that start no process, in under 20 seconds
	$(bin)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal -m quick tests/unit tests/compat $(ARGS)

chaos: check-venv $(testable) ## do faults to a pool for an hour (ARGS="--minutes 5 --seed 7")
	$(bin)/python -m tests.chaos $(ARGS)

kept: check-venv $(testable) ## ask a million times on kept connections, while a pool is reloaded, resized and its workers killed
	PREFORK_KEPT_REQUESTS=1000000 $(bin)/python -m pytest -s tests/live/test_kept_requests.py $(ARGS)

calls: check-venv $(testable) ## call a program of ONC RPC a hundred thousand times, while its workers are killed
	PREFORK_RPC_CALLS=100000 $(bin)/python -m pytest -s tests/live/test_rpc_kills.py $(ARGS)

mutants: check-venv $(testable) ## break each promise on purpose, and see whether the tests notice
	$(bin)/python -m tests.mutants $(ARGS)

lint: check-venv $(equipped) ## check style and types
	$(bin)/python -m ruff check .
	$(bin)/python -m ruff format --check .
	$(bin)/python -m mypy
	$(bin)/codespell

bench: check-venv $(installed) ## measure prefork beside the standard library (ARGS=--quick)
	$(bin)/python benchmarks/run.py $(ARGS)

docs: check-venv $(testable) ## write the generated tables and plots
	$(bin)/python -m tests.unit.test_docs
	$(bin)/python -m docs.images.policy
	$(bin)/python -m docs.images.cluster
	$(bin)/python -m docs.images.autoscaler
	$(bin)/python -m docs.images.timeouts

site: check-venv $(installed) ## build the manual as a site, in build/site
	@$(bin)/python -c 'import sphinx, furo, myst_parser' 2>/dev/null || $(bin)/python -m pip install --quiet --group site
	$(bin)/python -m sphinx -W --keep-going -q -b html docs build/site
	@echo build/site/index.html

clean: ## remove the environment and everything that was built
	rm -rf "$(VENV)" build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name .git -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(made): | check-python
	@echo "Making $(VENV) with $(PYTHON) ..."
	@"$(PYTHON)" -m venv "$(VENV)" || { \
	  echo "make: $(PYTHON) cannot make environments; Debian and Ubuntu have that in the package python3-venv" >&2; \
	  exit 1; }
	@$(bin)/python -m pip install -qq --upgrade "pip>=25.1"
	@touch $@

$(installed): $(made) pyproject.toml prefork/_version.py
	@echo "Installing prefork into $(VENV) ..."
	@$(bin)/python -m pip install -qq --editable .
	@touch $@

$(testable): $(installed) pyproject.toml
	@echo "Installing what the tests need into $(VENV) ..."
	@$(bin)/python -m pip install -qq --group test
	@touch $@

$(equipped): $(testable) pyproject.toml
	@echo "Installing the other tools into $(VENV) ..."
	@$(bin)/python -m pip install -qq --group dev
	@touch $@

# Any Python since 2.7 can read this program and say what is wrong.
check-python:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "make: there is no $(PYTHON) here; prefork needs CPython $(needs_python) or later: make PYTHON=/path/to/python3" >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import platform, sys; \
	here = "%s %s" % (platform.python_implementation(), platform.python_version()); \
	good = sys.version_info >= tuple(map(int, "$(needs_python)".split("."))) and here.startswith("CPython"); \
	good or sys.exit("make: $(PYTHON) is %s; prefork needs CPython $(needs_python) or later: make PYTHON=/path/to/python3" % here)'

# An environment of another Python than the requested one would test the wrong interpreter.
version := import sys; print("%d.%d" % sys.version_info[:2])
check-venv: $(if $(filter-out file,$(origin PYTHON)),check-python)
	@test ! -e $(made) || $(bin)/python -c "" || { \
	  echo "make: $(VENV) is broken (was its Python removed?); make clean first" >&2; exit 1; }
ifneq ($(origin PYTHON),file)
	@test ! -e $(made) || { \
	  has=$$($(bin)/python -c '$(version)'); wanted=$$("$(PYTHON)" -c '$(version)'); \
	  test "$$has" = "$$wanted" || { \
	    echo "make: $(VENV) has Python $$has, but $(PYTHON) is $$wanted; add VENV=.venv-$$wanted, or make clean first" >&2; \
	    exit 1; }; }
endif
