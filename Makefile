# Needs python3 (3.11 to 3.13, with venv and pip) and make; everything else is fetched by pip from the lock files.
# PYTHON=/path/to/python3 chooses another interpreter.

PYTHON ?= python3
UV ?= uv

SHELL := /bin/sh
.DELETE_ON_ERROR:
.SECONDARY:
.SUFFIXES:
.PHONY: help setup demo compiler wheel native test test-native deep mutants chaos chaos-calls bench bench-blackout bench-micro bench-reconnect bench-memory bench-seams bench-store bench-sync bench-jobs chaos-jobs lint test-clients test-board test-frameworks lock clean

BIN := .venv/bin
PIP_INSTALL := -m pip --disable-pip-version-check install --quiet --quiet --require-hashes

help:
	@echo 'make setup            the environment in .venv, with .venv/bin/gateway'
	@echo 'make demo             a call through Gateway, on this machine alone'
	@echo 'make wheel            dist/gateway-*.whl, its hot path compiled (needs a C compiler)'
	@echo 'make native           .native: a copy of the work tree with the compiled modules of that wheel'
	@echo 'make lint             ruff, mypy and the import contracts'
	@echo 'make test             the same, and then all tests'
	@echo 'make test-native      the tests against the compiled build (TESTS=folders)'
	@echo 'make deep             the continuity properties for a long time'
	@echo 'make mutants          known mistakes, each of which the tests must find'
	@echo 'make chaos            both of these:'
	@echo 'make chaos-calls      calls in real time among faults, and what became of each word'
	@echo '                      (CALLS= SECONDS= SEED= BATCH_MS=auto|0|100)'
	@echo 'make chaos-jobs       10 000 jobs while workers are killed (JOBS_IN_ALL= BACKENDS=)'
	@echo 'make bench            what a call costs, beside nginx and others (SYSTEMS= CALLS= SECONDS= RUNS= REPORT=)'
	@echo 'make bench-blackout   500 calls that lose Deepgram at once: how fast they replay'
	@echo 'make bench-micro      nanoseconds that one frame costs the core, beside the last kept (SAVE=1 keeps)'
	@echo 'make bench-reconnect  from a lost upstream connection to audio on the next'
	@echo 'make bench-jobs       jobs in a second, accepted and finished (JOBS_IN_ALL=)'
	@echo 'make bench-memory     what a call takes of memory'
	@echo 'make bench-sync       what a recording that is answered at once takes longer, and of memory'
	@echo 'make bench-store      rows in a second that the store takes, and what live finals cost beside calls'
	@echo 'make bench-seams      words of real speech that breaks cost, with two recognisers (long; heavy)'
	@echo 'make test-clients     the real Deepgram SDKs, straight and through Gateway'
	@echo 'make test-board       a bull-board on the queue of a fleet: it shows jobs and retries them'
	@echo 'make test-frameworks  the same with LiveKit Agents and Pipecat (heavy)'
	@echo 'make lock             recompile the lock files (maintainers; needs uv and npm)'
	@echo 'make clean            remove everything that was made'

# --- the environment ---------------------------------------------------------------------------------------------

setup: .venv/.installed

# A .venv that works is kept, so that a changed lock costs seconds; anything else is made anew.
.venv/.installed: requirements/dev.txt pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(MAKE) --no-print-directory .venv
	@echo 'setup: installing the locked packages'
	@$(BIN)/python $(PIP_INSTALL) -r requirements/dev.txt
	@echo 'setup: installing Gateway itself, editable'
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet --no-deps --no-build-isolation --editable .
	@touch $@
	@echo 'setup: done; see .venv/bin/gateway --help'

.PHONY: .venv
.venv:
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo "setup: no $(PYTHON) here; install Python 3.11, 3.12 or 3.13, or say PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "setup: $$("$(PYTHON)" --version) will not do; say PYTHON= a Python 3.11, 3.12 or 3.13" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "setup: this Python has no venv; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "setup: making .venv with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv --clear .venv

demo: setup
	@$(BIN)/python -m bench.demo

# --- the compiled build: see docs/design.md ----------------------------------------------------------------------

# Of Python's own, as setuptools will call it.
CC_NAME = $${CC:-$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_config_var("CC"))')}
PYTHON_H = $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h

compiler: setup
	@set -- $(CC_NAME); command -v "$$1" >/dev/null || \
	  { echo "compiler: no $$1 here; on Debian and Ubuntu: apt install gcc" >&2; exit 1; }
	@test -e "$(PYTHON_H)" || \
	  { echo "compiler: no $(PYTHON_H); on Debian and Ubuntu: apt install python3-dev" >&2; exit 1; }

# With edits and new files, without what is ignored.
TRACKED := $(wildcard $(shell git ls-files --cached --others --exclude-standard 2>/dev/null))
IN_WHEEL := pyproject.toml README.md LICENSE .gitignore $(filter gateway/%,$(TRACKED))

wheel: dist/.built
	@ls dist/*.whl

# hatch-mypyc leaves binaries beside the sources and takes pyproject.toml away meanwhile: so in a copy.
dist/.built: $(IN_WHEEL) .venv/.installed
	@test -n "$(TRACKED)" || \
	  { echo 'wheel: git does not list the files here; a clone that is yours is needed' >&2; exit 1; }
	@$(MAKE) --no-print-directory compiler
	@echo 'wheel: compiling the hot path (a minute or two)'
	@rm -rf build/wheel dist/gateway-*.whl
	@mkdir -p build/wheel dist
	@cp --parents --target-directory=build/wheel $(IN_WHEEL)
	@HATCH_BUILD_HOOK_ENABLE_MYPYC=1 $(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps \
	  --no-build-isolation --wheel-dir dist build/wheel
	@touch $@

native: .native/.built

.native/.built: $(TRACKED) dist/.built
	@rm -rf .native
	@mkdir .native
	@cp --parents --target-directory=.native $(TRACKED)
	@$(BIN)/python -m zipfile --extract dist/gateway-*.whl .native
	@touch $@

# --- tests -------------------------------------------------------------------------------------------------------

# pytest last: its closing line is the last line.
test: lint
	@$(BIN)/python -m pytest

# For all processes, `gateway` by its name too, the folder comes before the editable install.
NATIVE_PYTHON = cd .native && GATEWAY_TEST_COMPILED=1 PYTHONPATH="$(CURDIR)/.native" "$(CURDIR)/$(BIN)/python"

test-native: native
	@$(NATIVE_PYTHON) -m pytest -m 'not interpreted' $(TESTS)

# 12 000 schedules of each property, on one core: make deep EXAMPLES=1000 JOBS=5 SEED=7
EXAMPLES ?= 12000
JOBS ?= 1

deep: setup
	@$(BIN)/python -m tests.deep.run --examples $(EXAMPLES) --jobs $(JOBS) --seed $(SEED) --report tests/deep/report.md

mutants: setup
	@$(BIN)/python -m tests.mutants.run --report tests/mutants/report.md

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# A fault every few seconds: make chaos CALLS=20 SECONDS=300 SEED=7
SEED ?= 1

# One after the other, and the second also if the first one fails.
chaos: setup
	@$(MAKE) --no-print-directory --keep-going --jobs=1 chaos-calls chaos-jobs

chaos-calls: setup
	@$(BIN)/python -m tests.chaos.run --calls $(or $(CALLS),50) --seconds $(or $(SECONDS),600) --seed $(SEED) \
	  --batch-ms $(or $(BATCH_MS),auto) --report tests/chaos/report.md

chaos-jobs: setup
	@$(BIN)/python -m tests.chaos.jobs --jobs $(or $(JOBS_IN_ALL),10000) \
	  --backends $(or $(BACKENDS),embedded fleet) --report tests/chaos/jobs-report.md

# --- measurements: see bench/README.md ---------------------------------------------------------------------------

# A few minutes; all of it: make bench SYSTEMS=all CALLS=50,200,500,1000,2000 RUNS=3 REPORT=bench/cost.md
bench: bench-tools bench-native
	@$(BIN)/python -m bench.run $(if $(SYSTEMS),--systems $(SYSTEMS)) --calls $(or $(CALLS),200) \
	  --seconds $(or $(SECONDS),3) --runs $(or $(RUNS),1) $(if $(REPORT),--report $(REPORT))

bench-blackout: bench-tools bench-native
	@$(BIN)/python -m bench.run --systems $(or $(SYSTEMS),gateway-auto) --calls $(or $(CALLS),500) \
	  --seconds $(or $(SECONDS),60) --runs $(or $(RUNS),1) --blackout 5 $(if $(REPORT),--report $(REPORT))

.PHONY: bench-native
bench-native: setup
	@if $(MAKE) --no-print-directory compiler; then $(MAKE) --no-print-directory native; \
	  else echo 'bench: the gateway is measured interpreted'; fi

# What cannot be had here is left out, and the bench says so.
.PHONY: bench-tools
bench-tools: setup .bench/rivals/.installed .bench/plots/.installed
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory .bench/node-ws/.installed; fi
	@if command -v gcc >/dev/null; then $(MAKE) --no-print-directory .bench/load .bench/bare; \
	  else echo 'bench: no gcc: the load is made by Python, good for about 100 calls'; fi

LOAD_SOURCES := bench/load/load.c bench/load/wire.c

.bench/load: $(LOAD_SOURCES) bench/load/wire.h
	@mkdir -p .bench
	@gcc -O2 -Wall -Wextra -DTLS -o $@ $(LOAD_SOURCES) -lssl -lcrypto 2>/dev/null || \
	  { echo 'bench: no libssl-dev: the load in C goes without TLS'; gcc -O2 -Wall -Wextra -o $@ $(LOAD_SOURCES); }

.bench/bare: bench/load/bare.c
	@mkdir -p .bench
	@gcc -O2 -Wall -Wextra -o $@ $<

.bench/node-ws/.installed: bench/rivals/node-ws/package-lock.json bench/rivals/node-ws/package.json
	@echo 'bench: installing node-ws'
	@mkdir -p .bench/node-ws
	@cp bench/rivals/node-ws/package.json bench/rivals/node-ws/package-lock.json .bench/node-ws/
	@cd .bench/node-ws && npm ci --silent --ignore-scripts --no-audit --no-fund
	@touch $@

bench-micro: setup
	@$(BIN)/python -m bench.micro $(if $(SAVE),--save)

bench-jobs: setup
	@$(BIN)/python -m bench.jobs $(if $(JOBS_IN_ALL),--jobs $(JOBS_IN_ALL)) --report bench/jobs.md

bench-reconnect bench-memory bench-store bench-sync: bench-%: setup
	@$(BIN)/python -m bench.$* --report bench/$*.md

# More speech than the wheel's, where Debian's archive is at hand: fetched without root, and not installed.
PROMPTS := asterisk-core-sounds-en asterisk-core-sounds-en-wav

bench-seams: setup .bench/whisper/.installed
	@mkdir -p .bench/prompts
	@cd .bench/prompts && { ls *.deb || apt-get download $(PROMPTS); } >/dev/null 2>&1 && \
	  for package in *.deb; do dpkg-deb -x $$package .; done || echo 'bench: no prompts; one recording only'
	@$(BIN)/python -m bench.seams --engines asr,whisper --strategies hybrid,preroll,exact \
	  --report bench/seams.md $$(ls .bench/prompts/*.deb >/dev/null 2>&1 && echo --prompts .bench/prompts)

.bench/%/.installed: bench/requirements/%.txt | .venv/.installed
	@echo 'bench: installing $*'
	@$(BIN)/python -m venv --clear .bench/$*
	@.bench/$*/bin/python $(PIP_INSTALL) -r $<
	@touch $@

# --- real clients, each in an environment of its own under .clients ----------------------------------------------

LOCKS := tests/clients/requirements
SDKS := py7 py6 py5 py4 py3 js5 js4 js3
FRAMEWORKS := livekit pipecat
SDK_ENVS := $(SDKS:%=.clients/%/.installed)
BOARD_ENV := .clients/js-board/.installed
FRAMEWORK_ENVS := $(FRAMEWORKS:%=.clients/%/.installed)

# Node.js from the system when it is there and knows the switch that the drivers need (20.10), else from PyPI.
NODE_ENV := $(if $(shell node --experimental-websocket -e 0 2>/dev/null && command -v npm),,.clients/node/.installed)
NODE_PATH_ENTRY := $(if $(NODE_ENV),$(CURDIR)/.clients/node/bin:)

test-clients: setup
	@$(MAKE) --no-print-directory --jobs=3 $(SDK_ENVS) $(BOARD_ENV)
	@PATH="$(NODE_PATH_ENTRY)$$PATH" $(BIN)/python tests/clients/run.py sdks
	@$(MAKE) --no-print-directory test-board

test-board: setup $(BOARD_ENV)
	@PATH="$(NODE_PATH_ENTRY)$$PATH" $(BIN)/python -m tests.clients.board

test-frameworks: setup
	@$(MAKE) --no-print-directory $(FRAMEWORK_ENVS)
	@$(BIN)/python tests/clients/run.py frameworks --report tests/clients/frameworks-report.md

.clients/js%/.installed: $(LOCKS)/js%/package-lock.json $(LOCKS)/js%/package.json $(NODE_ENV)
	@echo 'clients: installing js$*'
	@mkdir -p .clients/js$*
	@cp $(LOCKS)/js$*/package.json $(LOCKS)/js$*/package-lock.json .clients/js$*/
	@cd .clients/js$* && PATH="$(NODE_PATH_ENTRY)$$PATH" npm ci --silent --ignore-scripts --no-audit --no-fund
	@touch $@

# Not the .venv's Python by path, but the one that it was made with: a venv made from a venv is no different.
.clients/%/.installed: $(LOCKS)/%.txt | .venv/.installed
	@echo 'clients: installing $*'
	@$(BIN)/python -m venv --clear .clients/$*
	@.clients/$*/bin/python $(PIP_INSTALL) -r $<
	@touch $@

# --- maintainers -------------------------------------------------------------------------------------------------

# Keeps what is locked unless told otherwise: make lock UPGRADE=--upgrade
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-header --no-annotate $(UPGRADE)

lock:
	@command -v "$(UV)" >/dev/null || { echo 'lock: needs uv; only maintainers run this' >&2; exit 1; }
	$(COMPILE) pyproject.toml --output-file requirements/run.txt
	$(COMPILE) pyproject.toml --group dev --all-extras --output-file requirements/dev.txt
	for name in py7 py6 py5 py4 py3 node $(FRAMEWORKS); do \
	  $(COMPILE) $(LOCKS)/$$name.in --output-file $(LOCKS)/$$name.txt || exit 1; done
	for name in whisper rivals plots; do \
	  $(COMPILE) bench/requirements/$$name.in --output-file bench/requirements/$$name.txt || exit 1; done
	for name in js5 js4 js3 js-board; do \
	  (cd $(LOCKS)/$$name && npm install --package-lock-only --ignore-scripts --silent) || exit 1; done
	cd bench/rivals/node-ws && npm install --package-lock-only --ignore-scripts --silent

clean:
	rm -rf .venv .clients .bench .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .native build dist
	find gateway tests bench -name __pycache__ -prune -exec rm -rf {} +
