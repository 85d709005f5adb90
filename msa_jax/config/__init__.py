"""Configs: how a user writes one, its typed options, and what a corpus adds."""

from msa_jax.config.defaults import base, finish, parse_variants

__all__ = ["base", "finish", "parse_variants"]
