"""A spec written by hand, in place of a corpus."""

from msa_jax.config.experiment import experiment
from msa_jax.typing import Spec, Task

EMOTIONS = ("neutral", "happy", "sad", "angry")


def with_spec(config, variant):
  """The experiment with the spec of a small aligned corpus of the variant's tasks."""
  config = experiment(config)
  if variant == "iemocap":
    tasks = {"emotion": Task("binary", classes=EMOTIONS, protocol="emotions")}
  elif variant.startswith("iemocap"):
    name = config.model["task"]
    tasks = {name: Task("classes", classes=EMOTIONS, protocol="classes")}
  else:
    limit, protocol = (1.0, "sims") if "sims" in variant else (3.0, "mosi")
    sentiment = Task("regression", -limit, limit, protocol=protocol)
    # Systems that learn from labels of one modality have them in their own corpus.
    alone = [n for n in config.data.synthetic.tasks if n.startswith("sentiment_")]
    tasks = dict.fromkeys(("sentiment", *alone), sentiment)
  names = ("text", "audio", "vision")
  spec = Spec(
    widths=dict(zip(names, (12, 5, 7), strict=True)),
    lengths=dict.fromkeys(names, 6),
    ids=dict.fromkeys(names, ("codes",) if config.data.num_frame_clusters else ()),
    tasks=tasks,
    train_size=64,
    utterances=6 if config.data.sample_unit == "dialogue" else 0,
  )
  return config.replace(spec=spec)
