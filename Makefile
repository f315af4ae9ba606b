# Every target sets up .venv first, on a machine that has only Python (>= 3.11) and make.
PYTHON ?= python3
PYTHON312 ?= python3.12
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test fuzz kills thorough check bench gpu older docs clean

demo: $(READY)
	$(BIN)/tracekit demo

# Two processes, a file of tests in one of them: fixtures are made once, and kills and time limits stay what they are.
# Of the long tests (tests/helpers/long.txt) a quarter, another one at another commit; PART=all for all, or 0 to 3.
PART := commit
test: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile --part=$(PART)

# A hundred thousand inputs to every reader of files that strangers make (some tens of minutes); `make test` tries 2,000.
fuzz: $(READY)
	TRACEKIT_FUZZ=100000 $(BIN)/pytest -q tests/test_fuzz.py

# kill -9 at sixty moments of the commands that write; `make test` tries 16.
kills: $(READY)
	TRACEKIT_KILLS=60 $(BIN)/pytest -q tests/test_killed.py

# Four times the random examples, and all of the long tests.
thorough: $(READY)
	TRACEKIT_THOROUGH=1 TRACEKIT_KILLS=60 $(BIN)/pytest -n 2 --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m experiments.research.benchmarks

# What only a GPU can tell, in three parts; ARGS="--device cpu --tiny" tries the command itself (docs/engine.md).
gpu: $(READY)
	$(BIN)/python -m experiments.research.gpu_day $(ARGS)

# The same in small where GPUs often are: Python 3.12, torch 2.11, transformers 5.17 and the wheels that are carried there.
older: $(READY)
	$(BIN)/python -m experiments.research.gpu_day.carry .wheels
	$(PYTHON312) -m venv .older
	.older/bin/python -m pip install --quiet torch==2.11.0 transformers==5.17.0 numba scipy safetensors 'typer>=0.29' pytest
	.older/bin/python -m pip install --quiet --no-index --no-deps .wheels/*.whl
	TRACEKIT_OLD_ENV=$(CURDIR)/.older/bin/python $(BIN)/pytest tests/experiments/research/gpu_day -k older

# A site that opens from the disk: site/index.html. Nothing is fetched, neither to build it nor to read it.
docs: $(READY)
	$(BIN)/python -m experiments.research.reference_docs docs/reference
	$(BIN)/mkdocs build --quiet --strict
	@echo "open site/index.html"

# constraints.txt holds the exact versions that were tested; pyproject.toml the ranges that users may choose from.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[engine,report,cluster,docs,dev]'
	touch $@

clean:
	rm -rf .venv .older site
