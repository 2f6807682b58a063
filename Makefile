# The ways into this project. `make demo` and `make test` work in a fresh clone; `make help` lists the rest.

PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$python && exit; done; \
	echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= .demo

# What was installed is named by the digest of what asked for it: nothing is installed twice, no change is missed.
WANTED := $(shell cat requirements/lock.txt pyproject.toml | sha256sum | cut -c1-16)
STAMP := $(VENV)/installed-$(WANTED)

.DEFAULT_GOAL := help
.PHONY: help check setup engine browser prometheus registry kubectl azurite gcs vllm demo lint test test-all clean

help:  ## List these targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

check:  ## Say what this machine lacks, with the remedy for each.
	@$(PYTHON) scripts/check_machine.py

setup: $(STAMP)  ## Make the venv and install what requirements/lock.txt pins.

# Bytecode is made on every core, where pip takes one; packages bring files for other Pythons, which do not compile.
$(STAMP):
	$(PYTHON) scripts/check_machine.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --requirement requirements/lock.txt
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	rm -f $(VENV)/installed-*
	touch $@

engine: setup  ## Fetch the local tritonserver into the user's cache, once.
	$(BIN)/deployctl engine install

browser:  ## Find a Chromium for the report's tests, or install Debian's.
	bash scripts/install_chromium.sh

prometheus:  ## Find Prometheus and promtool for the tests of the alerts, or install Debian's.
	bash scripts/install_prometheus.sh

registry:  ## Find the OCI registry that tests publish to, or install Debian's.
	bash scripts/install_registry.sh

kubectl: setup  ## Find a kubectl whose kustomize builds the manifests, or fetch a pinned one into the user's cache.
	$(BIN)/python scripts/install_kubectl.py

azurite:  ## Install Azurite, which emulates Azure blob storage, in the user's cache (360 MB), for the tests of that store.
	bash scripts/install_azurite.sh

gcs: setup  ## Install fake-gcs-server, which emulates Google Cloud Storage, in the user's cache (10 MB), for the tests of that store.
	bash scripts/install_gcs.sh $(BIN)/python

vllm: engine  ## Install vLLM for CPU in an environment of its own in the user's cache (3.5 GB), for language models.
	bash scripts/install_vllm.sh $(BIN)/python

demo: engine  ## Fine-tune, package, serve in a real Triton, classify real images.
	PATH="$(abspath $(BIN)):$$PATH" bash scripts/demo.sh $(DEMO)

lint: setup  ## Style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2

# Four at a time for two cores, since tests wait for servers and children, with OpenMP's idle threads asleep; tests
# that measure a server under load then have the cores for themselves.
test: lint engine browser prometheus registry kubectl  ## Lint, types, and every test that is not slow.
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m "not slow and not alone" --numprocesses 4 --dist worksteal
	$(BIN)/python -m pytest -m "alone and not slow"

test-all: lint engine browser prometheus registry kubectl  ## Lint, types, and every test.
	$(BIN)/python -m pytest

clean:  ## Remove what these targets made; the engine stays in the user's cache.
	rm -rf $(VENV) $(DEMO) .mypy_cache .ruff_cache .pytest_cache
