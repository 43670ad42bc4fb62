# Every target does everything from a bare clone: environment, pinned install, then the job.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test check docs system emulate faults clean

train: .venv/train
	$(BIN)/sprat train --recipe quick --final --dataset auto

test: .venv/dev
	$(BIN)/python -m pytest $(if $(CI),--durations=15)

check: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# README, docs/, the models' cards and the docstrings as a site: build/site/index.html
docs: .venv/docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs -d build/doctrees . build/site

# what needs a wheel, other compilers or many minutes; a Ray cluster has the machine for itself
system: .venv/dev .venv/docs
	$(BIN)/python -m pytest tests/system -rs -m "not cluster" $(if $(CI),--durations=15)
	$(BIN)/python -m pytest tests/system -rs -m cluster -n 0 $(if $(CI),--durations=15)

# pretrained models in C on an emulated Cortex-M; says which of Debian's packages are missing
emulate: .venv/train
	$(BIN)/python benchmarks/emulate.py

# kills, full disks, damage, hostile input; FAULTS=300 kills at random moments unless told otherwise
faults: .venv/dev
	PYTHONPATH=tests $(BIN)/python -m faults

.venv/train: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' # older ones have no --group
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]' --group dev
	touch $@ .venv/train

.venv/docs: .venv/train
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' # older ones have no --group
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
