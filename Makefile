# Start with `make quickstart` or `make test`. Each target installs what it needs into $(VENV).
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
PYTEST := $(RUN) -m pytest -n 2 --dist worksteal
# Bytecode is compiled at the first import, and only for what is imported.
PIP := $(RUN) -m pip install --quiet --no-compile

# Both depend on torch and would replace the build that the `dev` extra pins, so they are installed
# without their dependencies.
TIMM := 'timm==1.0.31; python_version == "3.11"' 'torchvision==0.28.0; python_version == "3.11"'

.PHONY: setup quickstart test-fast test test-full lint bench bench-data report notebook docs docs-check clean

setup: $(VENV)/setup.installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("Python %d.%d is too old: repvgg_jax needs 3.11 or later (make PYTHON=python3.12 ...)" % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/setup.installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) -e .
	@touch $@

$(VENV)/dev.installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps $(TIMM)
	@touch $(VENV)/setup.installed $@

# Trains on the bundled digits, fuses, verifies and prints the report: about two minutes.
quickstart: setup
	$(RUN) main.py --config configs/quickstart.py --workdir runs/quickstart

# Tests of about a second or less that start no processes: 80 seconds on two cores.
test-fast: $(VENV)/dev.installed
	$(PYTEST) -m "not medium and not system and not slow"

test: $(VENV)/dev.installed
	$(PYTEST) -m "not slow"

test-full: $(VENV)/dev.installed
	$(PYTEST)

lint: $(VENV)/dev.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyrefly check --python-interpreter-path $(RUN)

# Compares training steps and fused nets with PyTorch and onnxruntime.
bench: $(VENV)/dev.installed
	$(RUN) -m experiments.benchmarks.pytorch
	JAX_PLATFORMS=cpu $(RUN) -m experiments.benchmarks.onnxruntime --constant --keep_freed_memory --patience=20

# Compares the input pipeline with others on class folders: make bench-data DATA=/data/imagenet
bench-data: setup
	@test -n "$(DATA)" || { echo "make bench-data needs DATA=<class folders of JPEGs>"; exit 2; }
	$(PIP) -e '.[bench]'
	$(RUN) main.py --mode=bench_data --config configs/a0.py --config.data.source=folder --config.data.data_dir=$(DATA)

# Writes RESULTS.md and report.html from the rows in experiments/results.
report: setup
	$(RUN) -m experiments.report

# Writes runs/analysis.html, on what each branch of runs/quickstart (or ANALYSIS_WORKDIR) does.
notebook: $(VENV)/dev.installed
	$(RUN) -m jupytext --sync experiments/studies/analysis.ipynb
	$(RUN) -m nbconvert --log-level=ERROR --execute --to html --output-dir runs experiments/studies/analysis.ipynb

# Builds the pages of docs/ with the API reference: build/site/index.html
docs: setup
	$(PIP) -e '.[docs]'
	$(RUN) -m mkdocs build --quiet --strict

# Runs every command and Python snippet of README.md and docs/ in a scratch folder: minutes.
docs-check: $(VENV)/dev.installed
	$(RUN) -m docs.check

# Does not delete runs/.
clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
