# make run: environment and the demo.  make test: environment and the tests.  make check: format, lint, types, layers, shell, spelling.
# make cluster: a real Slurm on this machine, to try job scripts on; make cluster-stop ends it.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

venv: $(STAMP)  ## make the environment

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[plot,report,tensorboard,wandb,dev]'
	@touch $@

run: $(STAMP)  ## run the whole job on this machine, small: text in, continued-pretrained model out
	rm -rf demo-out
	$(BIN)/poro demo $(DEMO)

test: $(STAMP)  ## run the tests, two files at a time; the last line is pytest's summary
	@$(BIN)/python -m pytest --numprocesses 2

check: $(STAMP)  ## format, lint, types, layers, shell scripts, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	git ls-files -z '*.sh' '*.sbatch' .ci/run | xargs -0 $(BIN)/shellcheck
	$(BIN)/codespell

docs: $(STAMP)  ## write the pages that are made from the code
	$(BIN)/python -m megatron_poro.observe.reference >docs/metrics.md

pictures: $(STAMP)  ## make the pictures in docs from the demo's run; needs chromium, and `make run` before
	$(BIN)/python tools/pictures.py

cluster:  ## start a real Slurm of 3 nodes on this machine, to try job scripts on; needs slurm-wlm and munge, installs nothing
	@tools/cluster.sh up 3
	@echo "To use it, in this shell:"
	@tools/cluster.sh env

cluster-stop:  ## end it, with all its jobs
	@tools/cluster.sh down

clean:  ## remove what the demo and builds left
	rm -rf demo-out build *.egg-info

distclean: clean  ## remove the environment too (1.5 GB)
	rm -rf $(VENV)

.PHONY: help venv run test check docs pictures cluster cluster-stop clean distclean
