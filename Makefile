# install, serve, check, test, soak, test-gpu. CI runs `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INTERPRETED := tests/kernels/gpu tests/workers/model/cuda

.PHONY: install serve check test soak test-gpu bench clean

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

# Triton kernels run in its interpreter, which a process chooses before it imports them; the first call compiles them.
test: check
	$(BIN)/python -m pytest -m "not slow and not gpu and not multi_gpu" $(ARGS)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -m "not slow and not gpu and not multi_gpu" $(INTERPRETED)

soak: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not gpu and not multi_gpu" --timeout 1800 $(ARGS)

# On a machine with a GPU, by its own Python where nothing was installed; ARGS="-n 8" where pytest-xdist is there.
test-gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m pytest -m "not slow" $(INTERPRETED) \
		--ignore tests/kernels/gpu/test_ahead_of_time.py $(ARGS)

bench: $(STAMP)
	$(BIN)/python benchmarks/serving.py $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
