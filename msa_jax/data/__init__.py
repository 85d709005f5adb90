"""Where utterances come from: files -> `Corpus` -> batches.

`read` reads every supported file; `save` writes the neutral `.npz`.
"""

from msa_jax.data.readers import FORMATS, read
from msa_jax.data.readers.npz import save

__all__ = ["FORMATS", "read", "save"]
