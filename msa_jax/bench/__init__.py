"""How fast it is, measured: `python -m msa_jax.bench --config=configs/hgem.py`."""
