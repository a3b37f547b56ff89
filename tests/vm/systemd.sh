#!/bin/bash
# The systemd cgroup driver, with systemd as PID 1; options go to vm-run.sh (-k cloud612, -v …).
cd "$(dirname "$0")/../.." || exit 1
bring=()
case $PWD/ in /tmp/* | /var/tmp/* | /run/* | /dev/shm/*) bring=(-x "$PWD") ;; esac  # empty inside, but for what is brought
exec tests/vm/vm-run.sh -S -t 120 "${bring[@]}" "$@" -e MANOR_TEST_DEADLINE_S=45 -- .venv/bin/python -m pytest -q \
  -p no:cacheprovider -p tests.harness.deadline -o faulthandler_timeout=60 \
  --confcutdir=tests/e2e/cgroups tests/e2e/cgroups/test_systemd.py
