# Set-up is done once, by whichever target comes first: it makes .venv and leaves a stamp there.
# `make help` lists the targets and the variables.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
EXTRAS := dev,aer,ibm,pennylane,tomography,report,transformers,distributed

# The first of these that runs and has a supported version. A name can exist and still not run (version managers leave
# such stubs), so each is tried.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(SUPPORTED)' >/dev/null 2>&1 && { echo $$python; break; }; done)

TORCH ?= torch==2.13.0
PIP_ARGS ?=
ARGS ?=

# Two test workers and several torch threads each would fight for the cores.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test lint format docs bench lock clean distclean

help:  ## this list
	@echo "Targets:"
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14
	@echo "Variables:"
	@echo "  PYTHON    interpreter of the environment, 3.11 to 3.13; default: the first found on the path"
	@echo "  TORCH     torch requirement, or path or URL of a wheel; default: torch==2.13.0"
	@echo "  PIP_ARGS  further arguments of pip install, such as another index"
	@echo "  ARGS      further arguments of the test runner, such as ARGS='-k mpo'"
	@echo "PYTHON, TORCH and PIP_ARGS count when the environment is made; 'make distclean' makes way for a new one."

setup: $(STAMP)  ## make .venv with all that the other targets need

# torch comes first and alone: installed later it would be one of many wishes, and the build chosen by TORCH and PIP_ARGS
# could be replaced. Its own pin is left out of the second step, so that another TORCH is kept.
# An environment without a stamp was left half made, so it is made anew.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found. Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c '$(SUPPORTED)' || { echo "PYTHON=$(PYTHON) does not run or is not Python 3.11, 3.12 or 3.13." >&2; exit 1; }
	@rm -f $@
	"$(PYTHON)" -m venv $(if $(wildcard $@),,--clear) $(VENV) || { echo "$(PYTHON) cannot make virtual environments; Debian and Ubuntu keep that in the package python3-venv." >&2; exit 1; }
	@echo "Installing into $(VENV): about 2 GB, a minute or two with a good connection ..."
	@sed '/^torch==/d' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c $(VENV)/constraints.txt '$(TORCH)'
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c $(VENV)/constraints.txt hatchling editables
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c $(VENV)/constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)  ## the whole pipeline on bundled digits, offline; writes unbraid-demo/
	$(BIN)/unbraid demo --out unbraid-demo

test: $(STAMP)  ## tests, and the code in README.md and docs/
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(STAMP)  ## ruff, mypy and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## rewrite the code as lint wants it, where ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## the documentation as pages in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(STAMP)  ## every benchmarks/bench_*.py
	@for benchmark in $(sort $(wildcard benchmarks/bench_*.py)); do \
		echo "== $$benchmark"; $(BIN)/python $$benchmark || exit 1; done

# The packages of torch's CUDA builds are left out: each build of torch names its own exactly.
lock: $(STAMP)  ## remake constraints.txt from pyproject.toml with the newest versions
	$(BIN)/python -m pip install -q $(PIP_ARGS) uv
	printf '%s\n' '$(TORCH)' hatchling editables > $(VENV)/lock.in
	$(BIN)/uv pip compile -q --upgrade --universal --all-extras --python-version 3.11 --fork-strategy fewest \
		--no-annotate --no-header -o $(VENV)/lock.txt pyproject.toml $(VENV)/lock.in >/dev/null
	@{ echo '# Exact versions of all that make installs, and of the other extras, for Python 3.11 to 3.13.'; \
		echo '# Made by `make lock`.'; sed '/^\(nvidia\|cuda\|triton\)/d' $(VENV)/lock.txt; } > $(VENV)/constraints.new
	@mv $(VENV)/constraints.new constraints.txt

clean:  ## remove build products, caches and outputs
	rm -rf build dist site unbraid-demo .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find src tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean  ## clean, and remove .venv
	rm -rf $(VENV)
