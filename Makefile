# NIMA on Triton. `make help` lists what there is. Everything installs into .venv, once.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# An interpreter the embedded tritonserver has a stub for; PYTHON=... overrides.
FITS := import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do \
	$$p -c '$(FITS)' 2>/dev/null && command -v $$p && break; done)
PIP_INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
SERVE_READY := $(VENV)/.ready-serve
TEST_READY := $(VENV)/.ready-test
PERF := .venv-perf
PACKAGES := client/nima_client training/nima_training build/nima_build
# Debian packages of some tests: the browser, perf_analyzer's library, clock jumps.
TEST_PACKAGES := chromium libb64-0d libfaketime
PYTEST_ARGS ?=

# Runs, not files:
.PHONY: help demo serve test test-all lint format model verify gpu-check fuzz reliability audit train-demo clean perf-analyzer bench bench-peers

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.10, 3.11 or 3.12 with venv found: install one" \
		"(Debian: apt-get install python3 python3-venv) or pass PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c '$(FITS)' 2>/dev/null || { echo "PYTHON=$(PYTHON) is no Python 3.10, 3.11 or 3.12" \
		"with venv: pass PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Making the environment $(VENV) with $(PYTHON) …"
	@$(PYTHON) -m venv $(VENV)

$(SERVE_READY): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what serving needs into $(VENV) (about 700 MB on disk; no torch) …"
	@$(PIP_INSTALL) -e '.[demo]'
	@scripts/apt-packages.sh $$($(BIN)/python -c \
		'from nima_build.server import missing_packages; print(*missing_packages())')
	@touch $@

$(TEST_READY): pyproject.toml constraints.txt | $(SERVE_READY)
	@echo "Installing what training and the tests need into $(VENV) (about 6 GB with torch) …"
	@$(PIP_INSTALL) -e '.[dev]'
	@scripts/apt-packages.sh $(TEST_PACKAGES)
	@scripts/promtool.sh $(BIN)
	@touch $@

demo: $(SERVE_READY) ## Score photos with a real tritonserver: make demo [IMAGES=folder]
	@$(BIN)/python examples/demo.py $(if $(IMAGES),"$(IMAGES)")

serve: $(SERVE_READY) ## Serve the bundled model on 127.0.0.1 until Ctrl-C
	@$(BIN)/nima serve

lint: $(TEST_READY) ## ruff and mypy
	@echo "ruff …" && $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "mypy …" && $(BIN)/mypy $(PACKAGES)

format: $(TEST_READY) ## Format the code and fix what ruff can fix
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

test: $(TEST_READY) $(PERF)/bin/perf_analyzer lint ## Set up everything, lint, and run the suite; one file: .venv/bin/python -m pytest FILE
	@echo "pytest (real tritonservers on free loopback ports) …"
	@$(BIN)/python -m pytest -m 'not slow' $(PYTEST_ARGS)

test-all: $(TEST_READY) $(PERF)/bin/perf_analyzer lint ## The suite with the slow tests
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

train-demo: $(TEST_READY) ## Prepare, train, evaluate and analyse: make train-demo [IMAGES=folder]
	@$(BIN)/python -m nima_training.demo $(if $(IMAGES),"$(IMAGES)")

model: $(TEST_READY) ## Export the bundled checkpoint into model_repository/ and renew its golden scores
	@$(BIN)/nima export --bundled
	@$(BIN)/nima verify --update-golden

verify: $(TEST_READY) ## Compare every artefact of the bundled model with PyTorch
	@$(BIN)/nima verify

gpu-check: $(TEST_READY) ## What of the GPU path works here, and how fast; writes gpu-check.json
	@if command -v nvidia-smi > /dev/null; then for extra in gpu tensorrt; do \
		echo "Installing the extra $$extra into $(VENV) …"; \
		$(PIP_INSTALL) -e ".[$$extra]" || echo "Going on without the extra $$extra."; done; fi
	@timeout 900 $(BIN)/python -m nima_build.gpu_check --json gpu-check.json

fuzz: $(TEST_READY) ## Fuzz the preprocessing: 20,000 mutated files of each of seven formats (1 to 5 minutes)
	@$(BIN)/python tests/reliability/fuzz.py --files $(or $(FILES),140000) --seed $(or $(SEED),0)

$(PERF)/bin/perf_analyzer: | $(BIN)/python
	@echo "Fetching perf_analyzer (inside the tritonclient 2.50 wheel) into $(PERF) …"
	@$(BIN)/python -m venv $(PERF)
	@$(PERF)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		tritonclient==2.50.0 nvidia-cuda-runtime-cu12==12.9.79
	@scripts/apt-packages.sh libb64-0d
	@test -x $@ && touch $@

perf-analyzer: $(PERF)/bin/perf_analyzer ## Fetch Triton's load generator into .venv-perf

BENCH_READY := $(VENV)/.ready-bench
SAMPLES := out/sample-photos
BENCH_PHOTOS = $(or $(IMAGES),$(wildcard $(or $(NIMA_SHARED),../shared)/photos/bench),$(SAMPLES))
$(BENCH_READY): pyproject.toml constraints.txt | $(SERVE_READY)
	@$(PIP_INSTALL) -e '.[bench]'
	@touch $@

$(SAMPLES): | $(SERVE_READY)
	@echo "No folder given (IMAGES=folder): measuring with the photos that ship with scikit-image."
	@$(BIN)/python examples/sample_photos.py $@

bench: $(BENCH_READY) $(PERF)/bin/perf_analyzer | $(filter $(SAMPLES),$(BENCH_PHOTOS)) ## Load-test against the limit: make bench [IMAGES=folder]
	@$(BIN)/nima bench "$(BENCH_PHOTOS)" $(BENCH_ARGS)

PEERS := .venv-peers
PEERS_PIP = $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check
PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))
$(PEERS)/.ready: benchmarks/peers/requirements.txt benchmarks/peers/requirements-torch.txt | $(TEST_READY)
	@echo "Installing the peers into $(PEERS) (about 2 GB, TensorFlow most of it) …"
	@$(BIN)/python -m venv --clear $(PEERS)
	@$(PEERS_PIP) -r $<
	@# torch is not installed twice: it is found in the project's environment, after the peers' own.
	@$(BIN)/python -c '$(PURELIB)' > "$$($(PEERS)/bin/python -c '$(PURELIB)')/zz_project.pth"
	@$(PEERS_PIP) --no-deps -r benchmarks/peers/requirements-torch.txt
	@touch $@

bench-peers: $(TEST_READY) $(PEERS)/.ready | $(filter $(SAMPLES),$(BENCH_PHOTOS)) ## Compare with FastAPI, LitServe, BentoML, Ray Serve, Keras, IQA-PyTorch …
	@$(BIN)/python benchmarks/peers/compare.py --photos "$(BENCH_PHOTOS)" $(BENCH_ARGS)

reliability: $(TEST_READY) ## The long form: faults, rollout, security, overload, 160,000 fuzzed files (20 minutes)
	@$(BIN)/python tests/reliability/fuzz.py --files 140000 --seed $$(date +%-j)
	@NIMA_FUZZ_SERVED=20000 $(BIN)/python -m pytest tests/reliability tests/server
	@$(BIN)/python benchmarks/overload.py --require 0.9

audit: $(TEST_READY) ## Known vulnerabilities of what is installed (asks PyPI; offline: ADVISORIES=clone)
	@if [ -n "$(ADVISORIES)" ]; then $(BIN)/python scripts/audit_offline.py $(ADVISORIES); \
	else $(PIP_INSTALL) pip-audit && $(BIN)/pip-audit --local --skip-editable; fi

clean: ## Remove the environment and every cache
	@rm -rf $(VENV) .venv-perf .venv-peers .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
