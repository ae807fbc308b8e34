"""How fast the library is beside the implementations it re-does: `make bench`, or `python -m benchmarks.run --help`."""
