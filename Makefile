# install, serve, check, test, soak. CI runs exactly these.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install serve check test soak bench clean

install: $(STAMP)

$(STAMP): pyproject.toml scripts/install.sh
	PYTHON=$(PYTHON) VENV=$(VENV) sh scripts/install.sh
	touch $@

serve: $(STAMP)
	@$(BIN)/python -m trunkline serve $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -m "not slow and not gpu and not multi_gpu" $(ARGS)

soak: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not gpu and not multi_gpu" --timeout 1800 $(ARGS)

bench: $(STAMP)
	$(BIN)/python benchmarks/serving.py $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
