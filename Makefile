# Which commands are there? Run `make`. Each sets up .venv by itself where it is missing or stale.
#
# The project is installed as a strict editable: a tree of links under build/, which mypy and the import
# hook of jaxtyping can follow. Edits are seen at once; a new, renamed or deleted file is not, so the
# links are laid again when the set of file names (or the version) changes, which takes a few seconds.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
# Without the warnings of the build that a strict editable needs its links: this file sees to them.
INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--config-settings editable_mode=strict
CANDIDATES := python3 python3.11 python3.12 python3.13 python3.14 python
CONSTRAINTS ?= constraints.txt
PYTHON ?= $(shell for python in $(CANDIDATES); do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& command -v "$$python" && break; done)

# What the links are for: this folder (scripts in .venv hold its path), and the files in these.
PACKAGED := logitstore storage pipeline cli
LINKED := $(strip $(CURDIR) $(shell \
	find $(PACKAGED) \( -name '*.py' -o -name py.typed \) 2>/dev/null | LC_ALL=C sort))
# A copied or moved checkout: the scripts of its .venv point to where it was.
HOME_FILE := $(VENV)/.home
DEPENDENCIES := $(VENV)/.dependencies
# What only the site needs is installed when it is first built, so that `make test` does not wait for it.
DOCS := $(VENV)/.docs
LINKS := build/.links
ifneq ($(CURDIR),$(shell cat $(HOME_FILE) 2>/dev/null))
.PHONY: $(DEPENDENCIES)
endif
ifneq ($(LINKED),$(shell cat $(LINKS) 2>/dev/null))
.PHONY: $(LINKS)
endif

# Libraries that the project works with and does not need: an environment of their own, made when it is first asked for.
INTEGRATIONS := .venv-integrations
LIBRARIES := transformers accelerate datasets jmespath lightning
# Without dependencies: theirs are here already. pip would exchange torch for the build that torchvision names, and
# botocore names an older dateutil than the one that it works with here.
LIBRARIES_ALONE := torchvision timm botocore
INSTALL_INTEGRATIONS := PYTHONWARNINGS=ignore $(INTEGRATIONS)/bin/python -m pip install --quiet \
	--disable-pip-version-check --constraint constraints.txt --constraint constraints-integrations.txt
ifneq ($(CURDIR),$(shell cat $(INTEGRATIONS)/.home 2>/dev/null))
.PHONY: $(INTEGRATIONS)/.dependencies
endif

# One thread a process: the numbers of the tests are small, and pytest starts two processes.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
PYTEST := $(TEST_ENVIRONMENT) $(BIN)/pytest -n 2 --dist loadgroup --durations 15 --durations-min 1

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(DEPENDENCIES): pyproject.toml $(CONSTRAINTS)
	@if [ -z "$(PYTHON)" ]; then \
		echo "PYTHON: expected Python 3.11 or newer, found none of $(CANDIDATES);" \
			"install one, or run make PYTHON=/path/to/python" >&2; exit 1; fi
	@if [ -x $(BIN)/python ] && [ "$$(cat $(HOME_FILE) 2>/dev/null || echo "$(CURDIR)")" = "$(CURDIR)" ]; \
		then :; else "$(PYTHON)" -m venv --clear $(VENV); fi
	@echo "installing into $(VENV) (the first time, this takes minutes)" >&2
	@$(INSTALL) --constraint $(CONSTRAINTS) --editable '.[test,lint]'
	@echo "$(CURDIR)" > $(HOME_FILE)
	@mkdir -p build && echo "$(LINKED)" > $(LINKS)
	@touch $@

$(LINKS): $(DEPENDENCIES) logitstore/__init__.py
	@if [ "$$(cat $@ 2>/dev/null)" != "$(LINKED)" ] || [ logitstore/__init__.py -nt $@ ]; then \
		$(INSTALL) --no-deps --no-build-isolation --editable . ; fi
	@mkdir -p build && echo "$(LINKED)" > $@

.PHONY: venv
venv: $(LINKS) ## set up .venv, or bring it up to date
	@:

.PHONY: demo
demo: venv ## the whole pipeline on embedded data, under a minute
	@$(BIN)/logitstore demo

.PHONY: test
test: venv ## the tests
	$(PYTEST)

$(INTEGRATIONS)/.dependencies: pyproject.toml constraints.txt constraints-integrations.txt \
		tests/support/torchvision_operators.py | $(DEPENDENCIES)
	@$(BIN)/python -m venv --clear $(INTEGRATIONS)
	@echo "installing into $(INTEGRATIONS) (the first time, this takes minutes)" >&2
	@$(INSTALL_INTEGRATIONS) --config-settings editable_mode=strict --editable '.[test]' $(LIBRARIES)
	@$(INSTALL_INTEGRATIONS) --no-deps $(LIBRARIES_ALONE)
	@packages=$$($(INTEGRATIONS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
		cp tests/support/torchvision_operators.py "$$packages"; \
		echo "import torchvision_operators" > "$$packages/torchvision_operators.pth"
	@echo "$(CURDIR)" > $(INTEGRATIONS)/.home
	@touch $@

$(INTEGRATIONS)/.links: $(INTEGRATIONS)/.dependencies $(LINKS)
	@$(INSTALL_INTEGRATIONS) --config-settings editable_mode=strict --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: test-integrations
test-integrations: $(INTEGRATIONS)/.links ## the tests of other libraries: transformers, lightning, torchvision, timm
	$(TEST_ENVIRONMENT) HF_HUB_OFFLINE=1 $(INTEGRATIONS)/bin/python -m pytest -n 2 --dist loadgroup \
		--durations 15 --durations-min 1 tests/integrations

# Integers, losses, format and encodings: laws that need neither a training nor a process of their own.
FAST := tests/pipeline/losses tests/packaging/test_layers.py tests/packaging/test_workflows.py \
	$(patsubst %,tests/storage/test_%.py,codec digest divergence encodings error_budget half format grid \
	order intervals random shard top_k)

.PHONY: test-fast
test-fast: venv ## the pure parts, in under a minute
	$(PYTEST) $(FAST)

.PHONY: test-deep
test-deep: venv ## all tests, the slow ones too, with more examples
	HYPOTHESIS_PROFILE=deep $(PYTEST) -m "deep or not deep" --timeout 3600

.PHONY: messages
messages: venv ## rewrite tests/messages.txt from what the tests see; then read git diff
	$(PYTEST) --update-messages

.PHONY: lint
lint: venv ## formatting, lint, and the type check of the installed wheel
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	PYTHONPATH=tests $(BIN)/python -m support.typecheck

.PHONY: format
format: venv ## format the code, and repair what ruff can repair
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .

.PHONY: bench
bench: venv ## what is fast, against what one would use instead
	$(BIN)/python benchmarks/run.py

.PHONY: bench-loaders
bench-loaders: venv ## the stream against other loaders, which pip installs under runs/ at first use
	@$(BIN)/python benchmarks/loaders.py

.PHONY: experiments
experiments: venv ## the paper's tables, on real data
	$(BIN)/logitstore run experiments/mnist.toml
	$(BIN)/python experiments/specialists.py --jobs 2

$(DOCS): $(DEPENDENCIES) | $(LINKS)
	@echo "installing what the site needs into $(VENV)" >&2
	@$(INSTALL) --constraint $(CONSTRAINTS) --editable '.[docs]'
	@touch $@

.PHONY: docs
docs: venv $(DOCS) ## the documentation site, into site/; a broken link or a page left out fails
	@# Not --quiet: a warning that is not printed does not fail either.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html"

.PHONY: pictures
pictures: venv ## the pictures of docs/, and the plots of the figures that benchmarks wrote
	$(BIN)/python docs/images/draw.py
	$(BIN)/python docs/images/plots.py

.PHONY: clean
clean: ## remove .venv, builds and caches
	rm -rf $(VENV) $(INTEGRATIONS) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
