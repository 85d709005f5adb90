"""How fast it is, measured: `python -m benchmarks --config=configs/hgem.py`."""
