"""The command people type: `manor`. Each verb is a module; what they share is in the packages below.

checkout    demo, bench: run what only a checkout has
oci         the runtime as a command
ps          what the shims of this node have: pods, containers, execs; usage has their CPU time and memory
leaks       what nobody owns; sweep removes it, ledger knows what there can be and whose it is, belongings what of a
            container is there still
trace       the waterfall of a start, from the scribe's file
"""
