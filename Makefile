.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt
# The oldest and the newest supported Python: the newest patch release that pyenv has, else the one on the path.
OLDEST ?= $(lastword python3.11 $(wildcard $(HOME)/.pyenv/versions/3.11.*/bin/python))
NEWEST ?= $(lastword python3.13 $(wildcard $(HOME)/.pyenv/versions/3.13.*/bin/python))
PORT ?= 5000
DOCS_PORT ?= 8000
HOST ?= 127.0.0.1
ARTIFACTS ?= $(CURDIR)/mlruns/server
SEEDS ?= 0
FROZEN := torch_pixels,lr_collapse,frozen
FINETUNED := finetune_50,finetune_20
# A fine-tune starts from a finished frozen attempt, so with parallel jobs it needs a sweep of its own.
ATTEMPTS ?= $(if $(LAUNCHER),$(FROZEN) $(FINETUNED),$(FROZEN),$(FINETUNED))
# Fine-tuning on drawn dogs is short; real data gets the guide's number of epochs.
OPTIONS ?= $(if $(MODEL),,phase.epochs=8)
SETTINGS := $(if $(MODEL),model=$(MODEL)) $(if $(DATA),data=$(DATA)) $(if $(ROOT),data.root=$(ROOT)) \
	$(if $(WEIGHTS),model.weights=$(WEIGHTS)) $(if $(LAUNCHER),hydra/launcher=$(LAUNCHER))

comma := ,
space := $() $()
# Extras of pyproject.toml; dev contains all others.
KNOWN_EXTRAS := joblib ray submitit search server export fast hub audit docs notebook dev
EXTRAS ?=
# The launcher submitit_slurm is in the extra submitit.
WANTED := $(subst $(comma), ,$(EXTRAS)) \
	$(filter $(KNOWN_EXTRAS),$(firstword $(subst _, ,$(LAUNCHER)))) \
	$(if $(POSTGRESQL)$(filter s3:%,$(ARTIFACTS)),server)
UNKNOWN := $(filter-out $(KNOWN_EXTRAS),$(WANTED))
$(if $(UNKNOWN),$(error EXTRAS=$(EXTRAS) was given. The extras are $(subst $(space),$(comma) ,$(KNOWN_EXTRAS)). \
	Type make setup EXTRAS=joblib,search, for example))
# Written after each installation: the extras that the environment has.
READY := $(VENV)/.ready
INSTALLED := $(shell cat $(READY) 2>/dev/null)
MISSING := $(if $(filter dev,$(INSTALLED)),,$(filter-out $(INSTALLED),$(WANTED)))
# All extras are installed together, so that their versions agree after pyproject.toml or the constraints have changed.
TO_INSTALL := $(or $(sort $(filter dev,$(INSTALLED) $(WANTED))),$(sort $(INSTALLED) $(WANTED)))

# Where the environment forbids it, each command would compile what it imports anew, which takes three times as long.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup dev missing table test test-slow test-long test-real check
.PHONY: faults audit-study fuzz bench bench-gpu bench-memory bench-predict bench-serve bench-grid ui server cache clear pretrain wheel pictures notebook-extra notebooks docs-extra docs docs-serve clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

# Checks the Python that will create the environment or that created it; equals requires-python in pyproject.toml.
CHECK_PYTHON := import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit( \
	"%s is Python %s. dogbreeds needs Python 3.11, 3.12 or 3.13. Type %smake setup PYTHON=python3.12." % (sys.argv[1], sys.version.split()[0], sys.argv[2]))

setup: $(READY) ## create .venv for make table (100 s, 2.6 GB on 2 cores); EXTRAS=joblib,search adds extras, EXTRAS=dev everything (160 s, 3.2 GB)
	@:

# Tests and checks need all extras.
dev:
	@$(MAKE) --no-print-directory setup EXTRAS=dev

# --no-compile: most installed modules are never imported. Importing the large packages once compiles the others.
$(READY): pyproject.toml $(CONSTRAINTS) $(if $(MISSING),missing)
	@if test -x $(BIN)/python; then $(BIN)/python -c '$(CHECK_PYTHON)' $(BIN)/python 'rm -r $(VENV) && '; \
	else $(PYTHON) -c '$(CHECK_PYTHON)' '$(PYTHON)' ''; fi
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint $(CONSTRAINTS) \
		--editable '.$(if $(TO_INSTALL),[$(subst $(space),$(comma),$(TO_INSTALL))])'
	-@$(BIN)/python -c 'import keras, mlflow, matplotlib.pyplot, scipy.stats' 2>/dev/null
	@echo $(TO_INSTALL) > $@

table: setup ## run the guide's five attempts and print them with its claims; for real data MODEL=, DATA=, ROOT=, WEIGHTS=, SEEDS=0,1,2, OPTIONS=; LAUNCHER=joblib, ray, submitit_slurm
	for attempts in $(ATTEMPTS); do \
		$(BIN)/python -m dogbreeds.train --multirun attempt=$$attempts seed=$(SEEDS) $(SETTINGS) $(OPTIONS) || exit 1; \
	done
	@$(BIN)/python -m dogbreeds.table only.model=$(or $(MODEL),miniature) $(if $(DATA),only.data=$(DATA))

test: dev ## run the first tier of tests, about 6 minutes on 2 cores
	$(BIN)/python -m pytest -n 2

test-slow: dev ## test whole commands: killed, resumed, exported, served; about 25 minutes
	$(BIN)/python -m pytest -n 2 -m 'slow and not long'

test-long: dev ## run all remaining cases, and the first tier on the oldest and the newest Python
	$(BIN)/python -m pytest -n 2 -m long
	$(MAKE) test VENV=.venv-oldest PYTHON='$(OLDEST)'
	$(MAKE) test VENV=.venv-newest PYTHON='$(NEWEST)'

test-real: dev ## test on real images and weights, in the folder that DOGBREEDS_REAL_DATA names
	$(BIN)/python -m pytest -m real

check: dev ## check formatting, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

faults: setup ## measure how often verdicts and preflight are right, on drawn dogs, and on photos in DOGBREEDS_REAL_DATA; SMALL=1: 3 minutes
	$(BIN)/python -m tests.bench.faults $(if $(SMALL),--small)

audit-study: setup ## measure how many planted copies and wrong labels an audit finds; ARGS="model=effnetb0 data=folder data.root=photos"
	$(BIN)/python -m tests.bench.audit_study $(ARGS)

fuzz: setup ## decode 10,000 damaged or malicious images; about a minute
	$(BIN)/python tests/bench/fuzz.py

bench: setup ## compare runs with Keras' two ways, and PyTorch where it is installed; 16 minutes, with FULL=1 hours
	$(BIN)/python -m tests.bench.speed $(if $(FULL),--full) $(ARGS)

bench-gpu: setup ## the same on a GPU, its memory, and whether results repeat bit for bit; 10 minutes
	$(BIN)/python -m tests.bench.speed --gpu

bench-memory: setup ## measure the peak memory of B4 at 380 px on 300 and 1,200 images; some minutes
	$(BIN)/python tests/bench/memory.py

bench-predict: setup ## compare predict with the bare network, on 1,000 images; some minutes
	$(BIN)/python tests/bench/predict.py

bench-serve: setup ## measure a served network: one large request, 50 at once, and its peak memory; some minutes
	$(BIN)/python tests/bench/serve.py

bench-grid: setup ## estimate the cost of a grid of attempts on B4; some minutes
	$(BIN)/python tests/bench/grid.py

pictures: setup ## draw the documentation's pictures from runs on drawn dogs; a few minutes; NAMES="verdicts cost" for some
	$(BIN)/python docs/make_pictures.py $(NAMES)

notebook-extra:
	@$(MAKE) --no-print-directory setup EXTRAS=notebook

notebooks: notebook-extra ## execute the notebooks in examples/, and save their outputs in them; NAMES=examples/first-run.ipynb for some
	$(BIN)/python docs/execute_notebooks.py $(NAMES)

wheel: dev ## build the wheel into dist/
	$(BIN)/python -m hatchling build -t wheel

ui: setup ## compare runs in MLflow, on port 5000 of this machine, or PORT=
	@$(BIN)/python -m dogbreeds.ui port=$(PORT)

server: setup ## start MLflow's server on port 5000, or PORT=; POSTGRESQL=postgresql+psycopg2://user@host/name, ARTIFACTS=folder or s3://bucket
	@mkdir -p mlruns
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host $(HOST) --port $(PORT) \
		--artifacts-destination "$(ARTIFACTS)" $(if $(ALLOWED),--allowed-hosts "$(ALLOWED)") \
		--backend-store-uri "$(or $(POSTGRESQL),sqlite:///$(CURDIR)/mlruns/server.db)"

cache: setup ## list what keeps disk space: cached features, checkpoints, recorded runs
	@$(BIN)/python -m dogbreeds.cache

clear: setup ## empty the feature cache, except for arrays in use; KINDS=leftover,deleted_runs lists others, with CONFIRM=true removes them
	@$(BIN)/python -m dogbreeds.cache $(if $(KINDS),'clear=[$(KINDS)]' $(if $(CONFIRM),confirm=$(CONFIRM)),clear=true)

pretrain: setup ## pretrain the miniature's backbone on drawn dogs again; about half an hour
	$(BIN)/python -m dogbreeds.pretrain

docs-extra:
	@$(MAKE) --no-print-directory setup EXTRAS=docs

docs: docs-extra ## build the documentation site into docs/site; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --config-file docs/mkdocs.yml

docs-serve: docs-extra ## serve the documentation site on port 8000, or DOCS_PORT=, and rebuild it when a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --config-file docs/mkdocs.yml --dev-addr 127.0.0.1:$(DOCS_PORT)

clean: ## remove the caches of pytest, mypy and ruff, dist/ and the built site; runs and cached features stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache dist docs/site
