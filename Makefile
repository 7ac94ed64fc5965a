# Everything a newcomer or CI runs. Needs Python 3.11 or later and make; the rest is installed into .venv.
#
#   PYTHON=python3.12     another interpreter for the virtual environment
#   PORT=9000             another port for the demonstration
#   FUZZ_SECONDS=1800     how long native-fuzz runs, after two minutes of compiling
#   PIP_FLAGS=...         more options for pip, such as another package index
#   LOCK=infra/locks/dev.txt  first install these exact packages, checked by their hashes
#   IMAGE_ROOT=...        where image-root builds the tree of a server, and sbom looks for it
#   RELEASE_FLAGS=...     options of release-check, such as --python /path/to/python3.14
#   VARIANT=cuda          the tree of a server for NVIDIA GPUs, 3 GB, instead of the CPU's

PYTHON ?= python3
PORT ?= 8000
FUZZ_SECONDS ?= 60
IMAGE_ROOT ?= build/image-root
VARIANT ?= cpu
BIN := .venv/bin
INSTALL := $(PYTHON) infra/install.py --venv .venv $(if $(LOCK),--lock $(LOCK))
SOURCES := export runtime handlers tests infra/install.py infra/demo.py infra/configuration_table.py infra/card_table.py infra/sampling_table.py infra/machines_table.py infra/bench infra/gpu infra/miniature infra/native_fuzz infra/native_emulation infra/shipping infra/site examples

# A file's tests share what they make, so each file stays on one core.
ALL_CORES := --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: help demo demo-once test soak readers clients quick test-fast check bench native native-fuzz cuda-standin image-root sbom release-check docs docs-test format clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: .venv/.demo  ## Export the trained miniature, serve it, print the URL and a curl line; Ctrl-C ends it
	@$(BIN)/python infra/demo.py --port $(PORT)

demo-once: .venv/.demo  ## The same, with one question through the openai client and its answer checked, then stop
	@$(BIN)/python infra/demo.py --once

test: .venv/.dev  ## Run all tests
	$(BIN)/python -m pytest $(ALL_CORES) --durations 10

soak: .venv/.dev  ## Run the tests that take a cluster, minutes or downloads, which `test` leaves out
	$(BIN)/python -m pytest -m soak --durations 10

readers: .venv/.dev  ## Three users' sessions in a clean Debian (root, debootstrap): half an hour, 4 GB of disk
	$(BIN)/python -m pytest -m soak tests/readers --durations 0

clients: .venv/.dev  ## Install the clients that `soak` tries, in .clients: minutes, 3 GB
	$(BIN)/python -m tests.handlers.clients.install

quick: .venv/.dev  ## Lint, types and the tests marked fast, side by side: run it often
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target check test-fast

test-fast: .venv/.dev
	$(BIN)/python -m pytest -m fast $(ALL_CORES)

check: .venv/.dev  ## Lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(SOURCES)

native: .venv/.dev  ## Compile the native kernels again, after a change of their sources
	$(BIN)/python -m qwonnx.runtime.native.build

native-fuzz: .venv/.dev  ## Mutated tensors for the native kernels, under sanitizers, for FUZZ_SECONDS
	$(BIN)/python -m infra.native_fuzz --seconds $(FUZZ_SECONDS) --emulated

cuda-standin: .venv/.dev  ## The CUDA target's tests, on a CUDA runtime that computes nothing; fetches 250 MB once
	$(BIN)/python -m tests.cuda_standin $(ALL_CORES)

image-root: .venv/.dev  ## Build the tree of a server (VARIANT) in IMAGE_ROOT from its lock, and list what is large
	$(BIN)/python -m infra.shipping.image_root $(IMAGE_ROOT) --variant $(VARIANT)

sbom: .venv/.dev  ## Write IMAGE_ROOT's SBOM (CycloneDX 1.6) and NOTICE beside it; fails on an unknown licence
	@test -d $(IMAGE_ROOT) || $(MAKE) --no-print-directory image-root
	$(BIN)/python -m infra.shipping.sbom $(IMAGE_ROOT) --variant $(VARIANT)

release-check: .venv/.dev  ## Build a release twice, compare, install and ask it in each Python found (RELEASE_FLAGS)
	$(BIN)/python -m infra.shipping.release_check $(RELEASE_FLAGS)

docs: .venv/.dev  ## Build the documentation site in build/site, for a browser, without a network
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet -f infra/site/mkdocs.yml
	@echo "open build/site/index.html"

docs-test: .venv/.dev  ## Build the site, and run every command of every page: ten minutes
	$(BIN)/python -m pytest -m "soak or not soak" tests/test_site.py tests/test_readme.py tests/test_code_blocks.py

format: .venv/.dev  ## Rewrite the sources as `check` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.bench  ## Measure exports, and the runtime beside its peer; makes 11 GB in .bench
	$(BIN)/python -m infra.bench.peers --work .bench
	$(BIN)/python -m infra.bench.export_speed .bench/geometry

clean:  ## Remove everything that the other targets made
	rm -rf .venv .clients .cuda-standin .bench .demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

.venv/.demo: pyproject.toml infra/constraints.txt infra/install.py
	$(INSTALL) --extras cpu,export --with openai $(PIP_FLAGS)
	@touch $@

.venv/.dev: pyproject.toml infra/constraints.txt infra/install.py
	$(INSTALL) --extras dev $(PIP_FLAGS)
	@touch $@ .venv/.demo

.venv/.bench: pyproject.toml infra/constraints.txt infra/install.py
	$(INSTALL) --extras dev,bench $(PIP_FLAGS)
	@touch $@ .venv/.dev .venv/.demo
