"""The papers' experiments, as functions and as `python -m msa_jax.studies`."""
