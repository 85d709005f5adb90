"""Where utterances come from: files -> `Corpus` -> batches.

`read` reads every supported file; `save` writes the neutral `.npz`.
"""

from msa_jax.data.npz import save
from msa_jax.data.reading import FORMATS, read

__all__ = ["FORMATS", "read", "save"]
