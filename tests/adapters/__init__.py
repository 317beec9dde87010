"""The parts of the WebUI adapters that need no WebUI; the rest is tests/hosts/ on real ones."""
