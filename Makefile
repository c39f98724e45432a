# `make demo` and `make test` do all the set-up themselves: a virtual environment with pinned versions.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

.PHONY: docs demo test test-slow test-gpu lint format clean help

help:
	@echo "make demo       train dat_nano on the embedded sample (about two minutes), evaluate, predict, draw"
	@echo "make test       the test suite"
	@echo "make test-slow  the tests that take minutes;  make test-gpu  those that need CUDA"
	@echo "make docs       the site, with API reference and gallery, into runs/docs"
	@echo "make lint       ruff and mypy;  make format  let ruff format"

KERNELS := $(wildcard src/deformvit/ops/native/*.cpp src/deformvit/ops/native/*.h src/deformvit/ops/native/build.py)

.venv/installed: pyproject.toml constraints.txt hatch_build.py $(KERNELS)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: .venv/installed
	@rm -rf $(DEMO)
	$(BIN)/deformvit train demo --run.output $(DEMO)
	$(BIN)/deformvit eval --model $(DEMO)/best.safetensors --data sample
	$(BIN)/deformvit predict sample --model $(DEMO)/best.safetensors --top 3
	$(BIN)/deformvit figure points sample --model $(DEMO)/best.safetensors --output $(DEMO)/figures
	@echo
	@echo "Deformed points on test images: $(DEMO)/figures/"

# A process a core, each with one thread: threads of several processes wait for one another.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow --timeout 3600

test-gpu: .venv/installed
	$(BIN)/python -m pytest -m gpu

docs: .venv/installed
	$(BIN)/sphinx-build -W --keep-going -q -b html docs runs/docs
	@echo "The site: runs/docs/index.html"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs build dist
