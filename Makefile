# Two commands for a newcomer: make demo, make test. PYTHON picks the interpreter (3.11 or newer), VENV the folder
# of the virtual environment. Paths may have spaces, so no file is a target: each recipe looks for itself.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/demo.yaml
BIN = $(VENV)/bin
unexport PYTHONDONTWRITEBYTECODE # else every process compiles anew what it imports, for seconds each

# $(call install,EXTRA): the project with an extra's packages, once; again only when pyproject.toml has changed,
# so that nothing here needs a network a second time. Bytecode is left to the first import of each module: of some
# 20 000 in the packages few are ever imported, and to compile those of moto and sympy alone takes 12 s.
define install
@test -x "$(BIN)/python" || "$(PYTHON)" -m venv "$(VENV)"
@test "$(VENV)/.installed-$(1)" -nt pyproject.toml || { \
	echo "installing streamcl[$(1)] into $(VENV)" && \
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[$(1)]" && \
	touch "$(VENV)/.installed-$(1)"; }
endef

.PHONY: help demo demo-icons demo-live install install-test install-lint install-docs test test-all test-slow test-faults test-package test-kafka lint types check docs notebooks generated clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

# $(call forget,RUN,CLASS): asks a run to forget a class, prints what the receipt shows, and writes the report anew.
define forget
@echo "" && echo "Now forget the class $(2): streamcl forget $(1) --class $(2) --execute"
@"$(BIN)/streamcl" forget $(1) --class $(2) --execute
@"$(BIN)/streamcl" verify $(1)
@echo "Report, with the request: $$("$(BIN)/streamcl" report $(1))"
endef

demo: install  ## run configs/demo.yaml on real images, forget a class, and show where the report lies
	@"$(BIN)/streamcl" run "$(CONFIG)" --fresh
	$(if $(filter configs/demo.yaml,$(CONFIG)),$(call forget,runs/demo,7))

demo-icons: install  ## the second demonstration: icons drawn in several styles
	@"$(BIN)/streamcl" run configs/icons.yaml --fresh
	$(call forget,runs/icons,camera)

demo-live: install  ## a stream that never ends: digits through Redis, or a folder, and a kill -9 on the way
	$(call install,redis)
	@"$(BIN)/python" configs/live_demo.py

install:  ## the virtual environment with streamcl in it
	$(call install,onnx)

install-test: install
	$(call install,test)

install-lint: install-test
	$(call install,lint)

install-docs: install
	$(call install,docs)

test: install-test  ## install what the tests need, and run those that are quick
	"$(BIN)/python" -m pytest -m "not slow and not long" -n auto --dist loadfile

test-all: install-test  ## all tests but the slow ones, and see that they cover the code
	"$(BIN)/python" -m pytest -m "not slow" -n auto --dist loadfile --cov --cov-fail-under=93

test-slow: install-test  ## the tests that take longer
	"$(BIN)/python" -m pytest -m slow

test-faults: install-test  ## crash and fault cases alone, those that take longer too
	"$(BIN)/python" -m pytest -m faults -n auto --dist loadfile

test-package: install-test  ## build the wheel, install it into an empty environment and use it there
	"$(BIN)/python" -m pytest -m "slow or not slow" tests/project/test_package.py

test-kafka: install-test  ## the Kafka source against a real broker: make test-kafka BROKERS=host:port
	@test -n "$(BROKERS)" || { echo "name a broker: make test-kafka BROKERS=host:port" >&2; exit 2; }
	BROKERS="$(BROKERS)" "$(BIN)/python" -m pytest -m kafka tests/streams/test_kafka_conformance.py

lint: install-lint  ## ruff, checks and format
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .

types: install-lint  ## mypy, strict
	"$(BIN)/mypy"

check: lint types test  ## all of the above

docs: install-docs  ## the documentation site, into site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 "$(BIN)/mkdocs" build --strict

notebooks: install-test  ## execute the notebooks anew and store their outputs
	"$(BIN)/python" docs/run_notebooks.py

generated: install  ## write the JSON Schema, the reference of options, the map of modules and the table of routes anew
	"$(BIN)/streamcl" schema > configs/streamcl.schema.json
	"$(BIN)/python" docs/write_configuration.py
	"$(BIN)/python" docs/write_module_map.py
	"$(BIN)/python" docs/write_routes.py

clean:  ## remove the virtual environment and caches, never runs
	rm -rf "$(VENV)" site .pytest_cache .mypy_cache .ruff_cache
