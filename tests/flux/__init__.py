"""Cross-ControlNet on real FLUX pipelines with random weights."""
