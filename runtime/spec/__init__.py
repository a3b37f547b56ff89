"""The OCI runtime specification's config.json: strict JSON, typed records, and the loader between them.

`json` turns bytes into plain values and back, `model` names the records, `load` checks and builds them,
`consistency` has the rules for what they ask of each other.
Nothing here touches the kernel or a path: a spec is data, and what it asks for is decided elsewhere.
"""
