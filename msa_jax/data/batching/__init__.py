"""From a split to batches of static shapes."""
