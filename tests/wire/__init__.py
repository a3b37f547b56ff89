"""What the wire formats are held against.

facts/       tables of every message, field, value and method we speak, one package a file
protos/      the same as .proto files, from which protobuf's own encoder and decoder are made
generated/   the compiled descriptors of those
tables.py    reads the facts; oracle.py has protobuf's classes; samples.py makes messages of chance;
             regenerate.py compiles everything
"""
