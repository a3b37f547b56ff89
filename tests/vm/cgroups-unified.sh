#!/bin/bash
# The cgroup tests on a kernel where every controller is in v2, with a disk to throttle; options go to vm-run.sh (-k cloud612, -v …).
cd "$(dirname "$0")/../.." || exit 1
exec tests/vm/vm-run.sh -t 240 -d 64 "$@" -e MANOR_TEST_DEADLINE_S=90 -- .venv/bin/python -m pytest -q \
  -p no:cacheprovider -p tests.harness.every_test \
  --confcutdir=tests/e2e/cgroups tests/e2e/cgroups
