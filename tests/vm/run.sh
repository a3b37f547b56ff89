#!/bin/bash
# What needs a kernel where every controller is in v2: the cgroup tests, a container's life with its execs, those
# commands that are about cgroups, a shim's execs in cgroups of their own, what an idle one holds, and what `manor leaks`
# makes of cgroups.
cd "$(dirname "$0")/../.." || exit 1
bring=()
case $PWD/ in /tmp/* | /var/tmp/* | /run/* | /dev/shm/*) bring=(-x "$PWD") ;; esac  # empty inside, but for what is brought
.venv/bin/python -m shim.install .venv/bin || exit 1
commands=(tests/e2e/oci/test_unified.py tests/e2e/oci/test_events.py::test_an_oom_kill_is_an_event)
# -x: a failure that takes others along is told before the time is up.
leaks=(what_a_dead_shim_has_left_is_found_and_removed a_create_that_was_cut_short_is_said_to_be_one
  who_else_is_in_a_cgroup_is_named_and_left_alone a_cgroup_that_was_made_anew_is_somebody_elses)
exec tests/vm/vm-run.sh -t 240 -d 64 "${bring[@]}" "$@" -e MANOR_TEST_DEADLINE_S=90 -e MANOR_COMMANDS_BROUGHT=1 -- \
  .venv/bin/python -m pytest -q -x -p no:cacheprovider -p tests.harness.every_test \
  --confcutdir=tests/e2e/runtime tests/e2e/cgroups/test_*.py tests/e2e/runtime/test_exec*.py "${commands[@]}" \
  tests/e2e/shim/test_exec_leaf.py tests/e2e/shim/test_idle.py "${leaks[@]/#/tests/e2e/leaks/test_leaks.py::test_}" \
  -k "not v1 and not staged and not apart and not more_leaves"
