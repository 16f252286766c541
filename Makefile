# Everything here works on a fresh clone with Python >= 3.11, make and a C compiler: the first target
# that needs the environment creates .venv. PIP_ARGS and TORCH_ARGS are passed to pip (an index, a
# folder of wheels, --no-index ...), e.g. TORCH_ARGS="--index-url URL" for the CPU build of torch.
# WORKERS: processes that run tests, of one thread each.
# PEERS: flags of benchmarks/peers.py for `make bench`, e.g. PEERS="--peer vllm=/envs/vllm/bin/python".

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
TORCH_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2
PEERS ?=

BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements-run.txt)
PROJECTS := pyproject.toml core/pyproject.toml kernels/pyproject.toml plugins/models/pyproject.toml \
            plugins/quantization/pyproject.toml plugins/speculative/pyproject.toml plugins/serving/pyproject.toml
NIGHTLY := benchmarks/results/nightly.txt
AOT_RECORD := benchmarks/results/triton-aot.json
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip

.DEFAULT_GOAL := help
.PHONY: help install demo test test-web test-gpu nightly lint format types docs bench eval-tiny wheels clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# torch first and alone: whatever comes later must not replace its build.
$(STAMPS)/torch: $(STAMPS)/venv
	$(PIP) install -q $(PIP_ARGS) $(TORCH_ARGS) $(TORCH)
	$(PIP) install -q $(PIP_ARGS) hatchling editables
	@touch $@

$(STAMPS)/run: $(STAMPS)/torch requirements-run.txt $(PROJECTS)
	$(PIP) install -q $(PIP_ARGS) --no-build-isolation -r requirements-run.txt
	@touch $@

$(STAMPS)/dev: $(STAMPS)/torch requirements-dev.txt requirements-run.txt $(PROJECTS)
	$(PIP) install -q $(PIP_ARGS) --no-build-isolation -r requirements-dev.txt
	@touch $@ $(STAMPS)/run

install: $(STAMPS)/dev ## create .venv with everything that tests and tools need

demo: $(STAMPS)/run ## install what running needs, and let the embedded model answer
	$(BIN)/python examples/demo.py

test: $(STAMPS)/dev ## the default tests (not slow, nightly, gpu or web)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not nightly and not gpu and not web" -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

test-web: $(STAMPS)/dev ## tests that need a browser, npm or litellm; lists what was skipped, and why
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m web -rs $(PYTEST_ARGS)

test-gpu: $(STAMPS)/dev ## the tests that need a GPU; lists what was skipped, and why
	$(BIN)/python -m pytest -m gpu -rs $(PYTEST_ARGS)

nightly: $(STAMPS)/dev ## the full sets; the summary and what GPU kernels take go to benchmarks/results/
	@mkdir -p $(dir $(NIGHTLY))
	OMP_NUM_THREADS=1 QUIRE_AOT_RECORD=$(AOT_RECORD) $(BIN)/python -m pytest -m "nightly or slow" -n $(WORKERS) --dist worksteal -p no:cacheprovider $(PYTEST_ARGS) >$(NIGHTLY).tmp 2>&1; status=$$?; \
	{ date -u '+%Y-%m-%dT%H:%MZ'; git rev-parse HEAD 2>/dev/null; tail -n 40 $(NIGHTLY).tmp; } >$(NIGHTLY); \
	cat $(NIGHTLY).tmp; rm -f $(NIGHTLY).tmp; exit $$status

lint: $(STAMPS)/dev ## ruff (rules and format) and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(STAMPS)/dev ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMPS)/dev ## mypy --strict
	$(BIN)/mypy

docs: $(STAMPS)/dev ## build the site into site/, reference pages from the code
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

bench: $(STAMPS)/dev ## measure on this CPU, beside the engines in PEERS; JSON and PNG into benchmarks/results
	$(BIN)/python benchmarks/throughput.py --compare-hf
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/prefix.py
	$(BIN)/python benchmarks/curves.py
	$(BIN)/python benchmarks/plugins.py
	$(BIN)/python benchmarks/quantization.py
	$(BIN)/python benchmarks/speculative.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/linear.py
	$(BIN)/python benchmarks/peers.py $(PEERS)

eval-tiny: $(STAMPS)/run ## accuracy of the embedded model per skill, on held-out items
	$(BIN)/python examples/train_tiny/evaluate.py

wheels: $(STAMPS)/dev ## build the wheels of all distributions into dist/
	for project in core kernels plugins/models plugins/quantization plugins/speculative plugins/serving .; do $(BIN)/python -m build --no-isolation --wheel --outdir dist $$project || exit 1; done

clean: ## remove what was built, and .venv
	rm -rf $(VENV) dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
