"""B-fusion: fusion weights trained from gradient sizes, around any model."""
