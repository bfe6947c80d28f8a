# `make quickstart` and `make test` are the two commands; each makes the environment it needs.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: setup quickstart test test-full lint bench bench-data report notebook clean

setup: $(VENV)/requirements.installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("Python %d.%d is too old: repvgg_jax needs 3.11 or later (make PYTHON=python3.12 ...)" % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/requirements.installed: requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/requirements-dev.installed: requirements-dev.txt requirements-torch.txt requirements-cpu.txt $(VENV)/requirements.installed
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	$(RUN) -m pip install --quiet --no-deps -r requirements-torch.txt
	@touch $@

quickstart: setup
	$(RUN) main.py --config configs/quickstart.py --workdir runs/quickstart

test: $(VENV)/requirements-dev.installed
	$(RUN) -m pytest -n 2 --dist loadfile -m "not slow"

test-full: $(VENV)/requirements-dev.installed
	$(RUN) -m pytest -n 2 --dist loadfile

lint: $(VENV)/requirements-dev.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

bench: $(VENV)/requirements-dev.installed
	$(RUN) -m experiments.benchmarks.pytorch
	JAX_PLATFORMS=cpu $(RUN) -m experiments.benchmarks.onnxruntime --constant --keep_freed_memory --patience=20

# Class folders of JPEGs: make bench-data DATA=/data/imagenet
bench-data: setup
	$(RUN) -m pip install --quiet -r requirements-bench.txt
	$(RUN) main.py --mode=bench_data --config configs/a0.py --config.data.source=folder --config.data.data_dir=$(DATA)

# Tables and pictures of the sweeps' rows, experiments/results/*.jsonl.
report: setup
	$(RUN) -m experiments.report

# The branches of a trained net, on runs/quickstart or ANALYSIS_WORKDIR: runs/analysis.html
notebook: $(VENV)/requirements-dev.installed
	$(RUN) -m jupytext --sync experiments/studies/analysis.ipynb
	$(RUN) -m nbconvert --log-level=ERROR --execute --to html --output-dir runs experiments/studies/analysis.ipynb

clean:
	rm -rf $(VENV) runs build *.egg-info
