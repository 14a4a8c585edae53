PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test test-all lint wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | sort | while IFS="	" read -r name what; do printf '  %-10s %s\n' "$$name" "$$what"; done

install: $(STAMP) ## set up .venv with everything the tests need

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fastmim needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

DEMO := runs/demo
demo: install ## pre-train a small ViT on embedded photos of digits
	$(BIN)/fastmim pretrain --config docs/demo.yaml --out $(DEMO) --overwrite
	@echo
	@echo "The results lie in $(DEMO):"
	@echo "  samples.png           original, masked input, target, prediction"
	@echo "  report.html           the same with the loss curve and the settings"
	@echo "  encoder.safetensors   the backbone, for timm.create_model"

test: install ## run the default tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

test-all: install ## run all tests but those that need a GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 -m 'not gpu'

lint: install ## ruff, formatting, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src

wheel: install ## build the wheel into dist/
	$(BIN)/python -m build --wheel --outdir dist .

clean: ## delete builds and caches, not .venv and runs
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
