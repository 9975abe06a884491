# dicomai: make demo, make test. Python 3.11 or newer is all that is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where a CPU build of PyTorch lies, if you have no NVIDIA GPU; PyPI's build brings several GB of CUDA.
TORCH_INDEX ?=
JOBS ?= auto
DEMO ?= demo

.PHONY: help install test quick coverage ohif lint types layers demo clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(BIN)/dicomai: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v nvidia-smi >/dev/null || test -n "$(TORCH_INDEX)" || \
	    echo "No NVIDIA GPU and no TORCH_INDEX: pip may fetch a CUDA build of torch (several GB). See README, Installation."
	$(BIN)/pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(BIN)/pip install -c constraints.txt -e .[dev]
	@touch $(BIN)/dicomai

install: $(BIN)/dicomai ## make .venv and install dicomai and what its tests need

demo: $(BIN)/dicomai ## send two phantom studies through a real service, show what comes back
	$(BIN)/dicomai demo --out $(DEMO)

test: $(BIN)/dicomai lint types layers ## everything: lint, types, layers, the whole suite
	$(BIN)/pytest -n $(JOBS) --dist worksteal

quick: $(BIN)/dicomai ## the suite without its slow tests
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m "not slow"

coverage: $(BIN)/dicomai ## which lines the suite reaches; tracing makes it take much longer
	$(BIN)/pytest -n $(JOBS) --dist worksteal --cov --cov-report=term

OHIF := @ohif/app@3.13.2
OHIF_SHA256 := b189d3963bfc58e9394a9db8c7be75d07beb029ec211dbb126d47b62969dd3f1

.ohif/package/dist/index.html: Makefile
	@mkdir -p .ohif
	cd .ohif && npm pack --silent $(OHIF) && mv ohif-app-*.tgz ohif.tgz
	cd .ohif && echo "$(OHIF_SHA256)  ohif.tgz" | sha256sum --check --quiet
	cd .ohif && rm -rf package && tar -xzmf ohif.tgz && rm ohif.tgz

ohif: .ohif/package/dist/index.html ## fetch the viewer in which tests look at results

lint: $(BIN)/dicomai
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/dicomai
	$(BIN)/mypy

layers: $(BIN)/dicomai
	$(BIN)/lint-imports

clean: ## remove what install and tests made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage* .ohif $(DEMO)
