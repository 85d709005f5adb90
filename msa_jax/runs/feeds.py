"""Feeds of a run's splits."""

from jax.sharding import Mesh

from msa_jax.config.experiment import Experiment
from msa_jax.training import feed as feed_lib
from msa_jax.typing import Corpus, Spec


def make_feeds(
  corpus: Corpus,
  spec: Spec,
  *,
  budget_mib: int,
  buckets: int = 0,
  mesh: Mesh | None = None,
) -> dict[str, feed_lib.Feed]:
  """Feeds of every split, on the device, or every device of a mesh, where they fit.

  Args:
    corpus: preprocessed.
    spec: its shapes.
    budget_mib: larger splits are streamed from the host.
    buckets: static lengths of the batches; joint corpora, which have an order of
      their own, get one.
    mesh: of several devices.
  """
  buckets = 0 if len(spec.sources) > 1 else buckets
  return {
    name: feed_lib.make_feed(
      split, corpus.tasks, dict(spec.lengths), budget_mib * 2**20, buckets, mesh
    )
    for name, split in corpus.splits.items()
  }


def feeds_of(
  config: Experiment, corpus: Corpus, mesh: Mesh | None = None
) -> dict[str, feed_lib.Feed]:
  """Feeds of every split, as a run has them."""
  # Systems that read padding as their originals did need all of it.
  padded = config.model.get("compat", "none") != "none"
  return make_feeds(
    corpus,
    config.corpus_spec,
    budget_mib=config.data.device_budget_mib,
    buckets=0 if padded else config.data.buckets,
    mesh=mesh,
  )
