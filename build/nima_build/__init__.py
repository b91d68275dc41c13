"""From a checkpoint to a model repository that Triton serves."""
