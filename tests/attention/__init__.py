"""KV-Injection against equation 9 in float64, on bare tensors and on real ControlNets."""
