# Two commands matter: `make demo` and `make test`. Both need only Python 3.11, 3.12 or 3.13, git and make.
# `make PYTHON=/path/to/python demo` names the Python; else the first of these that can make an environment is taken.
PYTHON ?=
PYTHONS := $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3 python)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
STORE  ?= build/demo.duckdb
SITE   ?= leaderboard/site
# The board's quantizers take every backend's library; `make board` installs them.
BOARD ?= reference,rtn-8bit-g128,bnb-int8,rtn-4bit-g128,rtn-4bit-g64,bnb-nf4,bnb-fp4,hqq-4bit-g64,quanto-int4-g128,torchao-int4-g64,gguf-q4_0,gptq-4bit-g128-sym,awq-4bit-g128,autogptq-4bit-g128-sym,rtn-3bit-g64,hqq-3bit-g64,rtn-2bit-g64,hqq-2bit-g64
QUANTIZERS ?= reference,rtn-8bit-g128,bnb-int8,rtn-4bit-g128,rtn-4bit-g64,bnb-nf4,bnb-fp4,rtn-3bit-g64,rtn-2bit-g64

.PHONY: help demo test test-all release-check coverage check format site board picture mini wheel sbom clean
.PHONY: real-check real-experiment nll-check bench run-bench site-bench gpu-check
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

# Pins of constraints.txt have no wheels for 3.14 yet.
SUPPORTED := import sys; print(sys.version.split()[0]); sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
WHOLE := from importlib.util import find_spec; assert find_spec("pip"); $(SUPPORTED)
ORIGIN := import sys; print(sys.base_prefix, sys.version)
AGAIN := $(or $(MAKECMDGOALS),demo)
# Makes an environment with the first Python that can, or checks the one that is there; one sentence where neither goes.
define MAKE_VENV
	@if test -e $(1) || test -L $(1); then \
	  if ! holds=$$($(1)/bin/python -c '$(WHOLE)' 2> /dev/null); then \
	    echo "Error: $(1) holds no working Python 3.11, 3.12 or 3.13 with pip: delete it (rm -rf $(1)) and repeat: make $(AGAIN)." >&2; \
	    exit 2; \
	  fi; \
	  if test -n "$(PYTHON)" && test "$$("$(PYTHON)" -c '$(ORIGIN)' 2> /dev/null)" != "$$($(1)/bin/python -c '$(ORIGIN)')"; then \
	    echo "Error: $(1) holds Python $$holds, which is not that of $(PYTHON): delete it (rm -rf $(1)) or leave PYTHON out, and repeat: make $(AGAIN)." >&2; \
	    exit 2; \
	  fi; \
	  exit 0; \
	fi; \
	tried=; for python in $(PYTHONS); do \
	  if ! program=$$(command -v "$$python"); then \
	    tried="$$tried, $$python is not there"; \
	  elif ! version=$$("$$python" -c '$(SUPPORTED)' 2> /dev/null); then \
	    tried="$$tried, $$python $${version:+is }$${version:-does not start}"; \
	  elif "$$python" -m venv $(1) > /dev/null 2>&1; then \
	    echo "Using Python $$version ($$program)."; \
	    exit 0; \
	  else \
	    rm -rf $(1); \
	    tried="$$tried, $$python is $$version and its venv fails"; \
	  fi; \
	done; \
	echo "Error: no Python 3.11, 3.12 or 3.13 with venv here ($${tried#, }): install one (Debian: apt-get install python3 python3-venv), or name one: make PYTHON=/path/to/python3.12 $(AGAIN)." >&2; \
	exit 2
endef

# Never a file, so the environment is checked each time.
$(VENV)/.python:
	$(call MAKE_VENV,$(VENV))

# torch stands on every install line: without its pin pip would fetch gigabytes of CUDA libraries.
$(VENV)/.score: pyproject.toml constraints.txt | $(VENV)/.python
	@echo "Installing Quench and what scoring needs (a few minutes the first time) ..."
	$(PIP) torch==2.13.0 -e '.[score]'
	@touch $@
$(VENV)/.dev: $(VENV)/.score
	$(PIP) torch==2.13.0 -e '.[score,dev]'
	@touch $@

$(VENV)/.quantizers: $(VENV)/.score
	$(PIP) torch==2.13.0 -e '.[score,quantizers]'
	@touch $@

demo: $(VENV)/.score  ## score the demo submissions under nine quantizers and build the page
	$(BIN)/quench run --corpus mini --quantizers $(QUANTIZERS) --store $(STORE)
	$(BIN)/quench render --store $(STORE) --out $(SITE)
	$(BIN)/quench show --store $(STORE) --corpus mini --at 4
	@echo "Open the leaderboard: $(abspath $(SITE))/index.html"

# A file's tests share its fixtures, so they go to one process; one thread each, since the processes share the cores.
# Bytecode is kept whatever the shell says: every run in a process of its own would compile the harness again.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test: $(VENV)/.dev  ## run the tests of the program (6 minutes on two cores)
	$(PYTEST) --ignore tests/release

release-check: $(VENV)/.dev  ## run the tests of what is released: docs and their commands, wheel, workflows, images, licences
	$(PYTEST) tests/release

# What tests of the pages need beside Chromium; html-validate only where npm is.
$(VENV)/.browser: $(VENV)/.dev
	$(PIP) torch==2.13.0 -e '.[score,dev,browser]'
	if command -v npm > /dev/null; then npm install --silent --prefix build/node html-validate@9.7.1; fi
	@touch $@

test-all: $(VENV)/.browser  ## run every test, the slow ones included
	$(BIN)/python -m pytest -m 'slow or not slow'

coverage: $(VENV)/.dev  ## which lines of the harness the tests reach: at least 90%, without those that need a card
	rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --skip-covered

check: $(VENV)/.dev  ## lint, format check and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

site: $(VENV)/.score  ## build the pages from the board's own store, results.duckdb
	$(BIN)/quench render --store results.duckdb --out $(SITE)

board: $(VENV)/.quantizers  ## bring results.duckdb up to date: every submission under eighteen quantizers (about half an hour)
	$(BIN)/quench backends install autogptq
	$(BIN)/quench run --corpus mini --quantizers $(BOARD) --store results.duckdb

picture: $(VENV)/.score  ## draw the pictures of README and docs/survival.md from results.duckdb
	$(BIN)/python -m benchmarks.board_picture
	$(BIN)/python -m benchmarks.loss_picture

mini: $(VENV)/.score  ## regenerate the miniature corpus and train its models from scratch (about 10 minutes)
	$(BIN)/quench mini build --out build/mini

real-check: $(VENV)/.dev  ## a real model on real MUSE NEWS data: make real-check DATA_DIR=...
	$(BIN)/python -m benchmarks.real_check --data-dir $(or $(DATA_DIR),../shared/muse_news)
	QUENCH_REAL_MODEL=build/real/submissions/smollm2-target/weights QUENCH_REAL_DATA=$(or $(DATA_DIR),../shared/muse_news) \
	  $(BIN)/python -m pytest -q -m 'slow or not slow' tests/score/test_muse_oracle.py tests/score/corpora/test_corpus_pins.py -k real

real-experiment: $(VENV)/.quantizers  ## what a real model forgets and gets back (an hour and a half; resumable): make real-experiment DATA_DIR=...
	$(BIN)/python -m benchmarks.real_experiment --data-dir $(or $(DATA_DIR),../shared/muse_news) $(REAL)

nll-check: $(VENV)/.dev  ## what each quantizer costs a real model, against known figures: make nll-check DATA_DIR=...
	$(BIN)/python -m benchmarks.quantizer_nll --data-dir $(or $(DATA_DIR),../shared/muse_news)

bench: $(VENV)/.dev  ## time scoring: make bench, or make bench MODEL=folder DATA_DIR=... for a real model
	$(BIN)/python -m benchmarks.scoring $(if $(MODEL),--model $(MODEL) --data-dir $(DATA_DIR)) $(BENCH)

run-bench: $(VENV)/.dev  ## time the runner itself: planning, a run with nothing to do, the time around scoring
	$(BIN)/python -m benchmarks.runner $(BENCH)

site-bench: $(VENV)/.dev  ## time and weigh the pages of 1 to 1,000 entries
	$(BIN)/python -m benchmarks.site $(BENCH)

gpu-check: $(VENV)/.dev  ## parity and speed of scoring on a CUDA card
	$(BIN)/python -m benchmarks.gpu_check $(GPU)

wheel: $(VENV)/.dev  ## build the wheel and the source archive into dist/
	$(BIN)/python -m build --no-isolation --outdir dist .

# In an environment of its own, so that the tool is not in its own list.
build/sbom/.installed: Makefile
	$(call MAKE_VENV,build/sbom)
	build/sbom/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	@touch $@

sbom: $(VENV)/.score build/sbom/.installed  ## list what .venv holds, with versions and licences, in dist/sbom.json (CycloneDX)
	mkdir -p dist
	build/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-format JSON --output-file dist/sbom.json $(BIN)/python

clean:  ## remove what was built, but not the store and not .venv
	rm -rf build dist $(SITE) .pytest_cache .mypy_cache .ruff_cache
