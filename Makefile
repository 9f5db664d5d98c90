.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The oldest and the newest Python that are supported, where pyenv has them or on the path.
OLDEST ?= $(lastword python3.11 $(wildcard $(HOME)/.pyenv/versions/3.11.*/bin/python))
NEWEST ?= $(lastword python3.13 $(wildcard $(HOME)/.pyenv/versions/3.13.*/bin/python))
PORT ?= 5000
HOST ?= 127.0.0.1
ARTIFACTS ?= $(CURDIR)/mlruns/server
SEEDS ?= 0
FIRST := torch_pixels,lr_collapse,frozen
THEN := finetune_50,finetune_20
# A fine-tune goes on from a frozen attempt that has finished: where attempts run side by side, in a sweep after that one's.
ATTEMPTS ?= $(if $(LAUNCHER),$(FIRST) $(THEN),$(FIRST),$(THEN))
# The drawn dogs need no long fine-tune; a real set gets the guide's epochs unless OPTIONS says otherwise.
OPTIONS ?= $(if $(MODEL),,phase.epochs=8)
SETUP := $(if $(MODEL),model=$(MODEL)) $(if $(DATA),data=$(DATA)) $(if $(ROOT),data.root=$(ROOT)) $(if $(WEIGHTS),model.weights=$(WEIGHTS)) $(if $(LAUNCHER),hydra/launcher=$(LAUNCHER))

.PHONY: help setup table test test-slow test-long test-real check faults fuzz bench bench-memory bench-predict bench-serve bench-grid ui server kept clear pretrain clean

help: ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# Said of the Python that would make .venv, or that made it; as requires-python in pyproject.toml.
CHECK_PYTHON := import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit( \
	"%s is Python %s. dogbreeds needs Python 3.11, 3.12 or 3.13. Type %smake setup PYTHON=python3.12." % (sys.argv[1], sys.version.split()[0], sys.argv[2]))

setup: $(BIN)/.ready ## a .venv with everything, at the versions in constraints.txt

# Not compiled: most of what is installed is never imported, and what is gets compiled then.
$(BIN)/.ready: pyproject.toml constraints.txt
	@if test -x $(BIN)/python; then $(BIN)/python -c '$(CHECK_PYTHON)' $(BIN)/python 'rm -r $(VENV) && '; \
	else $(PYTHON) -c '$(CHECK_PYTHON)' '$(PYTHON)' ''; fi
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

table: setup ## the guide's five attempts, and the table of claims; MODEL=, DATA=, ROOT=, WEIGHTS=, SEEDS=0,1,2, OPTIONS= for a real set; LAUNCHER=joblib, ray, submitit_slurm
	for attempts in $(ATTEMPTS); do $(BIN)/python -m dogbreeds.train --multirun attempt=$$attempts seed=$(SEEDS) $(SETUP) $(OPTIONS) || exit 1; done
	@$(BIN)/python -m dogbreeds.table only.model=$(or $(MODEL),miniature) $(if $(DATA),only.data=$(DATA))

test: setup ## the tests, about 5 minutes on 2 cores
	$(BIN)/python -m pytest -n 2

test-slow: setup ## whole commands as a user runs them, killed, resumed, exported, served; about 23 minutes more
	$(BIN)/python -m pytest -n 2 -m 'slow and not long'

test-long: setup ## once in a while: every case of all that, and the first tier on the oldest and the newest Python
	$(BIN)/python -m pytest -n 2 -m long
	$(MAKE) test VENV=.venv-oldest PYTHON='$(OLDEST)'
	$(MAKE) test VENV=.venv-newest PYTHON='$(NEWEST)'

test-real: setup ## on real photos and weights, whose folder DOGBREEDS_REAL_DATA names
	$(BIN)/python -m pytest -m real

check: setup ## style, types and stale files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

faults: setup ## how often the preflight and the verdicts are right, on seeded healthy and faulty attempts; some minutes
	$(BIN)/python tests/bench/faults.py

fuzz: setup ## 10,000 damaged files and bombs through the decoder, in a process that is watched; about a minute
	$(BIN)/python tests/bench/fuzz.py

bench: setup ## what keeping the frozen prefix saves, beside plain Keras; up to 15 minutes
	$(BIN)/python tests/bench/speed.py

bench-memory: setup ## peak memory of B4 at 380 px on 300 and on 1,200 photos, some minutes
	$(BIN)/python tests/bench/memory.py

bench-predict: setup ## what predict costs beside the bare network, on 1,000 photos; some minutes
	$(BIN)/python tests/bench/predict.py

bench-serve: setup ## a served model: 1,000 photos in one request, 50 requests at once, and its peak memory; some minutes
	$(BIN)/python tests/bench/serve.py

bench-grid: setup ## what a grid of attempts on B4 costs, on paper, from measured shares; some minutes
	$(BIN)/python tests/bench/grid.py

ui: setup ## compare attempts in MLflow, on this machine's port 5000 or PORT
	MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui --host 127.0.0.1 --port $(PORT) --backend-store-uri sqlite:///$(CURDIR)/mlruns/mlflow.db

server: setup ## MLflow's server on this machine's port 5000 or PORT; POSTGRESQL=postgresql+psycopg2://user@host/name, ARTIFACTS=folder or s3://bucket
	@mkdir -p mlruns
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host $(HOST) --port $(PORT) --artifacts-destination "$(ARTIFACTS)" $(if $(ALLOWED),--allowed-hosts "$(ALLOWED)") \
		--backend-store-uri "$(or $(POSTGRESQL),sqlite:///$(CURDIR)/mlruns/server.db)"

kept: setup ## list what is kept on disk
	@$(BIN)/python -m dogbreeds.cache

clear: setup ## remove what is kept on disk and not in use
	@$(BIN)/python -m dogbreeds.cache clear=true

pretrain: setup ## draw and pretrain the miniature's backbone again, about half an hour
	$(BIN)/python -m dogbreeds.pretrain

clean: ## remove caches of tools; runs and kept features stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache dist
