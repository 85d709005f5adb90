"""The training loop: compiled stages, feeds, selection, checkpoints."""
