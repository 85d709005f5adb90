"""Pretrained text encoders: weights, tokens, linguistic inputs."""
