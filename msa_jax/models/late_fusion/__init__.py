"""Late fusion: one network per modality, fused before the head."""
