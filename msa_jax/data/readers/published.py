"""Facts about the corpora of the field, to tell what a file is.

SHA-256 of the feature files are those of MMSA's README. Utterances and sign counts
are of the official label files as distributed by MERBench and MoMKE.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

SHA256 = {
  "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524": (
    "MMSA MOSI unaligned_50.pkl"
  ),
  "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9": (
    "MMSA MOSI aligned_50.pkl"
  ),
  "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f": (
    "MMSA MOSEI unaligned_50.pkl"
  ),
  "45eccfb748a87c80ecab9bfac29582e7b1466bf6605ff29d3b338a75120bf791": (
    "MMSA MOSEI aligned_50.pkl"
  ),
  "c9e20c13ec0454d98bb9c1e520e490c75146bfa2dfeeea78d84de047dbdd442f": (
    "MMSA SIMS unaligned_39.pkl"
  ),
}


class Signs(NamedTuple):
  """How many labels of a split are below, at and above zero."""

  negative: int
  zero: int
  positive: int

  @property
  def total(self) -> int:
    return sum(self)


@dataclasses.dataclass(frozen=True)
class Published:
  """Official counts of one corpus with sentiment labels.

  Attributes:
    name: as in the papers.
    protocol: the `Task.protocol` of its sentiment labels.
    splits: split -> sign counts.
    circulating: other split sizes (train, valid, test) met in papers and files, and
      where they come from.
  """

  name: str
  protocol: str
  splits: Mapping[str, Signs]
  circulating: Mapping[tuple[int, ...], str] = dataclasses.field(default_factory=dict)


def _signs(train: tuple, valid: tuple, test: tuple) -> dict[str, Signs]:
  return {"train": Signs(*train), "valid": Signs(*valid), "test": Signs(*test)}


CORPORA = (
  Published(
    "CMU-MOSI",
    "mosi",
    _signs((552, 53, 679), (92, 13, 124), (379, 30, 277)),
    {(1281, 229, 685): "processing in the manner of MISA and MAG"},
  ),
  Published(
    "CMU-MOSEI",
    "mosi",
    _signs((4738, 3540, 8048), (506, 433, 932), (1350, 1025, 2284)),
    {
      (16265, 1869, 4643): "processing in the manner of MISA and MAG",
      (16327, 1871, 4662): "CMU-MultimodalSDK alignment",
      (16322, 1871, 4659): "CMU-MultimodalSDK alignment, another call order",
      (16331, 1871, 4662): "CMU-MultimodalSDK alignment",
      (15290, 2291, 4832): "the early release with 20 steps",
    },
  ),
  Published(
    "CH-SIMS",
    "sims",
    _signs((742, 207, 419), (248, 69, 139), (248, 69, 140)),
  ),
  Published(
    "CH-SIMS v2 (supervised)",
    "sims",
    _signs((1310, 318, 1094), (325, 92, 230), (488, 123, 423)),
  ),
)


def nearest(counts: Mapping[str, Signs], protocol: str) -> Published | None:
  """The published corpus of this protocol whose splits differ least from `counts`.

  The difference is the sum over splits and signs of |ours - theirs|. None if no
  split is named train, valid or test, or no corpus has this protocol.
  """

  def difference(corpus: Published) -> int:
    pairs = [(counts[name], corpus.splits[name]) for name in counts.keys() & names]
    return sum(
      abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True)
    )

  names = {"train", "valid", "test"}
  fitting = [corpus for corpus in CORPORA if corpus.protocol == protocol]
  if not fitting or not counts.keys() & names:
    return None
  return min(fitting, key=difference)
