"""Training half of NIMA on Triton: data, models, losses, loops, evaluation and checkpoints (PyTorch)."""
