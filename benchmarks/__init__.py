"""What the method costs: `python -m benchmarks --help`."""
