"""Training: one phase, one trial, one rank or many; plain PyTorch."""
