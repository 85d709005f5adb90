"""Multimodal sentiment analysis and emotion recognition in JAX and Flax."""
