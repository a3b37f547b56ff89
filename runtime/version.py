"""Which Manor this is. A test holds it equal to the distribution's version."""

VERSION = "0.1.0"
