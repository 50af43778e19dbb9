# Everything runs in .venv, which is made on first use from pyproject.toml.
PYTHON ?= python3
CONFIG ?= config/demo.yaml
SEED ?= 1
BIN := .venv/bin

.PHONY: demo test serve check fuzz bench bench-peers chaos soak clean

demo: .venv/ready
	$(BIN)/python -m demo.run

test: .venv/ready check
	$(BIN)/python -m pytest

serve: .venv/ready
	@exec $(BIN)/python -m operations.launch $(CONFIG)

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A million request bodies, 200,000 pictures, 50,000 documents, 100,000 of each other kind; with EXECUTIONS=n, n of each.
fuzz: .venv/ready
	$(BIN)/python -m tests.fuzz --seed $(SEED) $(if $(EXECUTIONS),--executions $(EXECUTIONS))

bench: .venv/ready
	$(BIN)/python -m benchmarks.run

bench-peers: .venv/ready
	$(BIN)/python -m benchmarks.peers

soak: .venv/ready
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),20)

chaos: .venv/ready
	$(BIN)/python -m benchmarks.chaos

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit("error: Python 3.11 or 3.12 is needed, not %d.%d; say make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv demo.html benchmarks/out
