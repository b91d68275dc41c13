"""Training half of NIMA on Triton: data, models, losses, the loop, evaluation, checkpoints."""
