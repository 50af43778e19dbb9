# Everything runs in .venv, which is made on first use from pyproject.toml.
PYTHON ?= python3
CONFIG ?= config/demo.yaml
SEED ?= 1
JOBS ?= auto
OVERLAY ?= gpu
BIN := .venv/bin
RULE := operations/kubernetes/components/monitoring/prometheusrule.yaml

.PHONY: demo test unit check serve manifests image-test fuzz bench bench-peers chaos soak clean

demo: .venv/ready
	$(BIN)/python -m demo.run

# Everything: lint and types, the unit tests side by side, then what needs a running Ray or a quiet machine, one after the other.
test: .venv/ready check unit
	$(BIN)/python -m pytest tests/benchmarks tests/serve tests/operations tests/fuzz

# No Ray. Tests of one file stay together, since they share what is dear to make.
unit: .venv/ready
	$(BIN)/python -m pytest tests/unit --numprocesses $(JOBS) --dist loadfile

serve: .venv/ready
	@exec $(BIN)/python -m operations.launch $(CONFIG)

# What `kubectl apply -k operations/kubernetes/overlays/$(OVERLAY)` would apply: gpu, cpu or complete. INTO=folder writes
# a file for each object.
manifests: $(RULE)
	$(if $(INTO),@mkdir -p $(INTO))
	@kubectl kustomize operations/kubernetes/overlays/$(OVERLAY) $(if $(INTO),--output $(INTO))

# The Prometheus operator's form of the alerts: the same text, two columns further in. Made again each time: git sets
# no times by which make could tell which of them is newer.
.PHONY: $(RULE)
$(RULE): operations/prometheus/alerts.yaml
	@sed '/^spec:/q' $@ >$@.new && sed 's/^./  &/' $< >>$@.new && mv $@.new $@

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
	$(BIN)/python -m benchmarks.run peers peers-vit-b-32

soak: .venv/ready
	$(BIN)/python -m benchmarks.run soak --minutes $(or $(MINUTES),20)

chaos: .venv/ready
	$(BIN)/python -m benchmarks.run chaos

# Builds the image without a registry of images, and runs it. As root; it takes minutes and 25 GiB of the disk meanwhile.
image-test: .venv/ready
	$(BIN)/python -m pytest tests/image --capture=no -v -rs

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 14) or sys.exit("error: Python 3.11 to 3.14 is needed, not %d.%d; say make PYTHON=python3.13" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv demo.html benchmarks/out
