"""The command people type: `manor`. Each verb is a module; what they share is in the packages below.

checkout    demo, bench: run what only a checkout has
oci         the runtime as a command
trace       the waterfall of a start, from the scribe's file
"""
