PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test test-all coverage test-lowest lint wheel test-wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | sort | while IFS="	" read -r name what; do printf '  %-12s %s\n' "$$name" "$$what"; done

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

lint: install ## ruff, formatting, mypy (src/ strict, tests/)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini

coverage: install ## run the default tests and show which lines they reach; fails below the floor in pyproject.toml
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --cov --cov-report=term:skip-covered

LOWEST := .venv-lowest
test-lowest: ## run the default tests with the lowest versions that pyproject.toml allows, in .venv-lowest
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n auto --maxprocesses 8

wheel: install ## build the wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --wheel --outdir dist .

# The wheel is installed in an environment of its own that sees the libraries of .venv, but not its fastmim.
WHEEL := build/wheel
test-wheel: wheel ## install the wheel and run it away from the source
	rm -rf $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > \
		"$$($(WHEEL)/bin/python -c 'import site; print(site.getsitepackages()[0])')/libraries.pth"
	$(WHEEL)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps dist/*.whl
	cd $(WHEEL) && bin/fastmim --version && bin/fastmim recipes table4/swin-b > recipe.yaml && \
		bin/python -c 'import fastmim, sys; sys.exit(sys.prefix not in fastmim.__file__)' && \
		bin/fastmim pretrain --data demo:photos --model resnet10t --image-size 64 --steps 2 --batch-size 4 --out run

clean: ## delete builds and caches, not .venv and runs
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
