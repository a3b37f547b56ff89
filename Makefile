# One command each. The machine needs Python 3.11 or newer, apt, and Go 1.26.3 or one from 1.21 on that may fetch that;
# everything else is made here.
PYTHON ?= python3
BIN := .venv/bin
WORKS ?=
CYCLES ?= 300

.PHONY: help venv tools ready demo test lint format unit e2e soak hot bench clean

help:  ## what there is to type
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9]+):.*## /\1\t/' | expand -t 10

venv:  ## .venv, with the commands manor, manor-oci and containerd-shim-manor-v2
	@$(PYTHON) tests/harness/venv.py

tools:  ## containerd, runc, crictl and what else the machine lacks, into ~/.cache/manor
	@$(PYTHON) tests/harness/tools.py > /dev/null

ready: venv tools  ## both of these: .venv/bin is ready to use by hand

demo: ready  ## a pod from run to remove, by crictl, through a private containerd
	@$(BIN)/python -m demo

test:  ## everything that CI runs: lint, unit tests on every CPython, end-to-end tests
	@$(PYTHON) tests/harness/check.py

lint: venv  ## ruff and mypy
	@$(PYTHON) tests/harness/check.py lint

format: venv  ## let ruff format everything
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

unit: venv  ## unit tests on every CPython of the machine; no root needed
	@$(PYTHON) tests/harness/check.py unit

e2e: ready  ## end-to-end tests through two containerds; root needed
	@$(PYTHON) tests/harness/check.py e2e

soak: ready  ## the long checks: 300 pod cycles (CYCLES=n), 5,000 hostile configs (CASES=n), 100 OOM kills (KILLS=n), 100,000 exit codes (EXITS=n), 250 kills under load (SWEEPS=containerd=n,warden=n,shim=n), 50,000 execs (EXECS=n), 10,000 orphans in each kind of pod (ORPHANS=n), 10,000 connections and 100,000 frames that abuse a shim's socket (CONNECTIONS=n, FRAMES=n), 1 GiB of logs (LOG_BYTES=n)
	@CYCLES=$(CYCLES) $(BIN)/python tests/harness/soak.py

hot: ready  ## write shim/hot.py anew: the code that runs in a shim, which a warden lays together (root; after changes)
	@$(BIN)/python -m tests.harness.hot_code --add
	@$(BIN)/ruff format -q shim/hot.py

bench: ready  ## Manor beside runc, in one run (WORKS=exec.shim,pod.start … for some of it, QUICK=1 for a glance)
	@$(BIN)/python -m benchmarks $(if $(WORKS),--works $(WORKS)) $(if $(QUICK),--quick)

clean:  ## what was made in the checkout; the cache stays
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info benchmarks/latest.json soak.json soak-sweeps
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
