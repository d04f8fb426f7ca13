# Everything happens in .venv, which `make setup` makes; nothing has to be activated first.
PYTHON ?= python3
BIN = .venv/bin

# Two workers: one waits while the other computes. Each has a core of its own (tests/conftest.py).
PYTEST = $(BIN)/pytest -n 2 --durations 10

.PHONY: help setup demo check test test-fast faults recipes bench

help:
	@echo 'make setup    .venv with Axolotl, DeepSpeed and two small models (minutes, once)'
	@echo 'make demo     train, merge and score a small model here, without a GPU'
	@echo 'make check    lint, types, and recipes/ against the templates'
	@echo 'make test     check, then every test, the fast ones first'
	@echo 'make test-fast  the tests that train nothing'
	@echo 'make faults   kill every tool at its writes and between them, 72 times, and see that nothing is lost'
	@echo 'make recipes  write recipes/ anew from the templates'
	@echo 'make bench    measure against the peers, each way in turn (hours), and write the tables of README.md'

setup:
	@$(PYTHON) tools/install.py

demo: setup
	$(BIN)/python tools/demo.py

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tools/render.py --check

test: check test-fast
	$(PYTEST) --dist loadfile -m slow

test-fast: setup
	$(PYTEST) --dist worksteal -m 'not slow'

faults: setup
	$(BIN)/pytest tests/test_faults.py --faults 72 -s

recipes: setup
	$(BIN)/python tools/render.py --all

bench: setup
	for name in startup training evaluation benchmarking merging growth; do $(BIN)/python bench/$$name.py || exit 1; done
	$(BIN)/python bench/table.py
