#!/bin/bash
# The systemd cgroup driver, with systemd as PID 1; options go to vm-run.sh (-k cloud612, -v …).
cd "$(dirname "$0")/../.." || exit 1
bring=()
case $PWD/ in /tmp/* | /var/tmp/* | /run/* | /dev/shm/*) bring=(-x "$PWD") ;; esac  # empty inside, but for what is brought
.venv/bin/python -m shim.install .venv/bin >/dev/null || exit 1  # compiling takes a minute in there
exec tests/vm/vm-run.sh -S -t 240 "${bring[@]}" "$@" -e MANOR_TEST_DEADLINE_S=60 -- .venv/bin/python -m pytest -q \
  -p no:cacheprovider -p tests.harness.every_test \
  --confcutdir=tests/e2e/cgroups tests/e2e/cgroups/test_systemd.py tests/e2e/cgroups/test_systemd_shim.py
