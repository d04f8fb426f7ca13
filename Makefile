# Everything happens in .venv, which `make setup` makes; nothing has to be activated first.
PYTHON ?= python3
BIN = .venv/bin

# Two workers: one waits while the other computes. Each has a core of its own (tests/conftest.py).
PYTEST = $(BIN)/pytest -n 2 --durations 10

.PHONY: help setup demo check test test-fast faults recipes bench

help:
	@echo 'make setup    .venv with Axolotl, DeepSpeed and two small models (minutes, once)'
	@echo 'make demo     train, merge and score a small model here, without a GPU'
	@echo 'make check    lint, types, directions of imports, recipes/ and docs against what generates them, lines of each folder'
	@echo 'make test     check, then every test, the fast ones first'
	@echo 'make test-fast  the tests that train nothing'
	@echo 'make faults   kill every tool at its writes and between them, and see that nothing is lost'
	@echo 'make recipes  write recipes/ and the generated parts of the documentation anew'
	@echo 'make bench    measure against the peers, each way in turn (hours), and write their tables'

setup:
	@$(PYTHON) tools/install.py

demo: setup
	$(BIN)/python tools/demo.py

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/python tools/render.py --check
	$(BIN)/python docs/generate.py --check
	@for room in tools $$(ls -d tools/lora_recipes/[a-z]*/) tools/lora_recipes; do \
	  printf '%6d lines  %s\n' $$(cat $${room%/}/*.py | wc -l) $${room%/}; done
	@printf '%6d lines  all of tools/\n' $$(find tools -name '*.py' -exec cat {} + | wc -l)

test: check test-fast
	$(PYTEST) --dist loadfile -m slow

test-fast: setup
	$(PYTEST) --dist worksteal -m 'not slow'

faults: setup
	$(BIN)/pytest tests/project/test_faults.py --faults 72 -s

recipes: setup
	$(BIN)/python tools/render.py --all
	$(BIN)/python docs/generate.py

bench: setup
	for name in startup training evaluation benchmarking merging growth; do $(BIN)/python bench/$$name.py || exit 1; done
	$(BIN)/python docs/generate.py
