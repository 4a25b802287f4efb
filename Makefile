# Two commands: `make demo` runs the main job, `make test` runs every test. Both set everything up first.
PYTHON ?= python3
VENV ?= .venv
# Where torch comes from. Without a GPU: make demo TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=
BIN := $(VENV)/bin

.PHONY: help setup demo test lint format bench-smoke clean-setup
help:
	@echo "make setup   virtual environment with pinned dependencies, project installed, software GL checked"
	@echo "make demo    the main job on this machine: videos -> reward -> policy, 12 to 22 minutes on 2 cores"
	@echo "make test    the whole test suite"
	@echo "make lint    ruff and mypy"
	@echo "make bench-smoke   every part beside its peers, minutes; fails under 80 % of the recorded ratios"

setup: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt launch/setup.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH_INDEX_URL="$(TORCH_INDEX_URL)" bash launch/setup.sh
	@touch $@

demo: setup
	$(BIN)/python launch/demo.py $(ARGS)

# Two processes: tests with Ray mostly wait, the others compute. One process: pytest itself.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder $(ARGS)

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# Without the peers' packages (pip install -e .[bench]) the races against them are left out, and so is their check.
bench-smoke: setup
	$(BIN)/python launch/benchmark.py smoke=true rounds=3 min_share=0.8 $(ARGS)

clean-setup:
	rm -rf $(VENV)
