# make demo: the whole pipeline at small size on the real simulator; make test: the fast tests. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
APT := $(shell if [ "$$(id -u)" = 0 ]; then echo apt-get; elif sudo -n true 2>/dev/null; then echo sudo -n apt-get; fi)

# Bytecode is kept, also where an image turned that off; else each command compiles all of torch and Lightning anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo smoke test test-slow test-long sim reproduce words lint docs docs-serve setup gl clean

demo: gl
	$(BIN)/python scripts/demo.py --size demo

smoke: gl  ## the demo as small as it goes, from the beginning
	rm -rf outputs/smoke
	$(BIN)/python scripts/demo.py --size smoke

test: setup  ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not long and not sim and not gpu and not tf"

test-slow: setup  ## real commands, killed and resumed; several processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "slow and not long and not sim and not gpu and not tf"

test-long: setup  ## what takes longest and changes least: more damage, more learning, benchmarks at tiny size
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "long and not sim and not gpu and not tf"

sim: gl  ## tests that need the simulator; about ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m sim

reproduce: gl words  ## all that released/ holds, and the policy of words: on a GPU, hours; interrupted it goes on
	$(BIN)/python scripts/reproduce_small.py

words: setup  ## the sentence encoder that the policy of words reads with
	$(BIN)/python -m pip install --quiet --no-compile -e '.[words]'

lint: setup  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs  ## the site, into outputs/site; a broken link or a page outside of the navigation fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: $(VENV)/.docs  ## the same on http://127.0.0.1:8000, built anew with every change
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --no-compile -e '.[docs]'
	touch $@

setup: $(VENV)/.ready

$(VENV)/.ready: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)) and "rsd needs Python 3.11 or 3.12: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile torch==2.13.0
	$(BIN)/python -m pip install --quiet --no-compile -e '.[commands,libero,harness,dev]'
	touch $@

gl: setup  ## libraries that render without a screen, where they are missing
	@packages="$$($(BIN)/python -m rsd.envs.gl --packages)" || exit 1; \
	if [ -n "$$packages" ] && [ -n "$(APT)" ]; then \
		$(APT) update -q && $(APT) install -y -q --no-install-recommends $$packages || exit 1; \
	fi
	@$(BIN)/python -m rsd.envs.gl >/dev/null

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
