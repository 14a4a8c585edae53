# make install: the set-up alone    make demo: pre-train on embedded real data    make test: all default tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test lint wheel clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fastmim needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

DEMO := runs/demo
demo: install
	$(BIN)/fastmim pretrain --config docs/demo.yaml --out $(DEMO) --overwrite
	@echo
	@echo "The results lie in $(DEMO):"
	@echo "  samples.png           original, masked input, target, prediction"
	@echo "  report.html           the same with the loss curve and the settings"
	@echo "  encoder.safetensors   the backbone, for timm.create_model"

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src

wheel: install
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
