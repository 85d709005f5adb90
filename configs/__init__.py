"""Config files of the systems, one each; installed as `msa_jax.configs`."""
