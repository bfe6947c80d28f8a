# `make` lists the targets. Each installs what it needs into $(VENV).
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
PYTEST := $(RUN) -m pytest -n 2 --dist worksteal
# Bytecode is compiled at the first import, and only for what is imported.
PIP := $(RUN) -m pip install --no-compile

# Otherwise each process would compile all modules that it imports: seconds for JAX and Flax.
unexport PYTHONDONTWRITEBYTECODE

# A pipe fails if pip fails.
SHELL := bash
.SHELLFLAGS := -o pipefail -c
# A filter for pip's output: on a terminal, each line replaces the one before; elsewhere, nothing is
# printed. Errors and warnings are on stderr and do not pass through it. A loop of the shell, since
# mawk, the awk of Debian, waits for a full buffer.
LAST_LINE := { while IFS= read -r line; do printf '\r\033[K%.78s' "$$line"; done; printf '\r\033[K'; }
PROGRESS := if [ -t 1 ]; then $(LAST_LINE); else cat > /dev/null; fi

# Both depend on torch and would replace the build that the `dev` extra pins, so they are installed
# without their dependencies.
TIMM := 'timm==1.0.31; python_version == "3.11"' 'torchvision==0.28.0; python_version == "3.11"'

# If creating the environment fails, make deletes its python, so that the next call tries again.
.DELETE_ON_ERROR:
.PHONY: help setup quickstart test-fast test test-full lint bench bench-data report notebook docs docs-check clean

help: ## list the targets
	@echo "make TARGET, or make PYTHON=python3.12 TARGET for another Python than $(PYTHON):"
	@sed -En 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | awk -F '|' '{ printf "  %-11s %s\n", $$1, $$2 }'

setup: $(VENV)/setup.installed ## install the package and its requirements into .venv
	@echo "$(VENV) is ready; to use its python in this shell: source $(VENV)/bin/activate"

$(RUN):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("Python %d.%d is too old: repvgg_jax needs 3.11 or later (make PYTHON=python3.12 ...)" % v)'
	@echo "Creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --quiet --upgrade pip  # older versions take twice as long

$(VENV)/setup.installed: requirements.txt pyproject.toml | $(RUN)
	@echo "Installing JAX, Flax and the other requirements with pip: 300 MB, about half a minute"
	@$(PIP) -e . | $(PROGRESS)
	@$(RUN) -c 'from repvgg_jax.ops import onednn; print("Convolutions by oneDNN:", onednn.unavailable() or "ready")'
	@touch $@

$(VENV)/dev.installed: requirements.txt pyproject.toml | $(RUN)
	@echo "Installing the requirements of development with pip, including PyTorch: about a minute"
	@$(PIP) -e '.[dev]' | $(PROGRESS)
	@$(PIP) --no-deps $(TIMM) | $(PROGRESS)
	@touch $(VENV)/setup.installed $(VENV)/notebook.installed $@

$(VENV)/notebook.installed: requirements.txt pyproject.toml | $(RUN)
	@echo "Installing the requirements of the notebook with pip"
	@$(PIP) -e '.[notebook]' | $(PROGRESS)
	@touch $(VENV)/setup.installed $@

quickstart: $(VENV)/setup.installed ## train on bundled digits, fuse, verify, report: two minutes
	$(RUN) main.py --config configs/quickstart.py --workdir runs/quickstart

test-fast: $(VENV)/dev.installed ## tests of a second or less that start no processes: 80 seconds
	$(PYTEST) -m "not medium and not system and not slow"

test: $(VENV)/dev.installed ## the tests: 8 minutes on two cores
	$(PYTEST) -m "not slow"

test-full: $(VENV)/dev.installed ## also the tests that take minutes each
	$(PYTEST)

lint: $(VENV)/dev.installed ## ruff and the type checker
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyrefly check --python-interpreter-path $(RUN)

bench: $(VENV)/dev.installed ## measure the figures of README.md on this machine's device
	$(RUN) -m experiments.benchmarks

bench-data: $(VENV)/setup.installed ## compare input pipelines on class folders of JPEGs: DATA=/data/imagenet
	@test -n "$(DATA)" || { echo "make bench-data needs DATA=<class folders of JPEGs>"; exit 2; }
	@$(PIP) -e '.[bench]' | $(PROGRESS)
	$(RUN) main.py --mode=bench_data --config configs/a0.py --config.data.source=folder --config.data.data_dir=$(DATA)

report: $(VENV)/setup.installed ## write RESULTS.md and report.html from the rows in experiments/results, or ROWS=FOLDER
	$(RUN) -m experiments.report $(if $(ROWS),--results=$(ROWS))

notebook: $(VENV)/notebook.installed ## write runs/analysis.html: the branches of runs/quickstart, or ANALYSIS_WORKDIR=FOLDER
	$(RUN) -m jupytext --sync experiments/studies/analysis.ipynb
	$(RUN) -m nbconvert --log-level=ERROR --KernelManager.transport_encryption=auto --execute --to html --output-dir runs experiments/studies/analysis.ipynb

docs: $(VENV)/setup.installed ## build the pages of docs/ with the API reference: build/site/index.html
	@$(PIP) -e '.[docs]' | $(PROGRESS)
	$(RUN) -m mkdocs build --quiet --strict

docs-check: $(VENV)/dev.installed ## run every command and Python snippet of README.md and docs/: minutes
	$(RUN) -m docs.check

clean: ## delete .venv and caches, but not runs/
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
