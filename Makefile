# Two commands for a newcomer: make demo, make test. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= configs/demo.yaml

.PHONY: help demo demo-icons test test-slow lint types check clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

# A stamp per set of packages: made again only when pyproject.toml changes, so a second run needs no network.
$(VENV)/.run: pyproject.toml
	test -x "$(BIN)/python" || "$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --editable ".[onnx]"
	touch "$@"

$(VENV)/.test: $(VENV)/.run
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch "$@"

$(VENV)/.lint: $(VENV)/.test
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --editable ".[lint]"
	touch "$@"

demo: $(VENV)/.run  ## run configs/demo.yaml on real images and show where the report lies
	"$(BIN)/streamcl" run "$(CONFIG)" --fresh

demo-icons: $(VENV)/.run  ## the second demonstration: icons drawn in several styles
	"$(BIN)/streamcl" run configs/icons.yaml --fresh

test: $(VENV)/.test  ## install what the tests need and run them
	"$(BIN)/python" -m pytest -m "not slow"

test-slow: $(VENV)/.test  ## the tests that take longer
	"$(BIN)/python" -m pytest -m slow

lint: $(VENV)/.lint  ## ruff, checks and format
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .

types: $(VENV)/.lint  ## mypy, strict
	"$(BIN)/mypy"

check: lint types test  ## all of the above

clean:  ## remove the virtual environment and caches, never runs
	rm -rf "$(VENV)" .pytest_cache .mypy_cache .ruff_cache
