"""Every option of a network does the kind of thing that it is for, and nothing else.

parameters   the network has other parameters
evaluation   the same parameters give other predictions
training     predictions stay; what is trained on does not
start        both stay; parameters start elsewhere
speed        the same numbers by another program

H-GEM, which takes long to trace, has tests of each option of its own in `hgem/`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_systems

from msa_jax.config.experiment import flatten
from msa_jax.layers.masking import hide_unavailable
from msa_jax.models import SYSTEMS
from msa_jax.step import compose
from msa_jax.studies.changes import changed

pytestmark = pytest.mark.slow


PARAMETERS, EVALUATION, TRAINING = "parameters", "evaluation", "training"
START, SPEED = "start", "speed"

_RATES = {
  "derl": ("text", "attention", "residual", "ffn", "enhancement"),
  "lf_dnn": ("text", "audio", "vision"),
}


def _sizes(*names, value=6):
  return dict.fromkeys(names, (value, PARAMETERS))


def _rates(system):
  return {f"dropout.{site}": (0.43, TRAINING) for site in _RATES[system]}


def _late(**others):
  hidden = [f"hidden_dims.{name}" for name in ("text", "audio", "vision")]
  return {
    **_sizes(*hidden, value=7),
    **_rates("lf_dnn"),
    "post_dim": (9, PARAMETERS),
    "post_dropout": (0.43, TRAINING),
    "compat": ("mmsa", EVALUATION),
    **others,
  }


def _all(option, *names, value=7, kind=PARAMETERS):
  return {f"{option}.{name}": (value, kind) for name in names}


_NAMES = ("text", "audio", "vision")


def _low_rank(**others):
  return {
    **_all("hidden_dims", *_NAMES),
    **_all("dropout", *_NAMES, value=0.43, kind=TRAINING),
    "rank": (5, PARAMETERS),
    "text_encoder": ("mean", PARAMETERS),
    "compat": ("mmsa", EVALUATION),
    **others,
  }


def _unimodal():
  return {
    **_all("unimodal_dims", *_NAMES),
    **_all("unimodal_dropout", *_NAMES, value=0.43, kind=TRAINING),
  }


def _memory(*parts):
  return {
    **_all("hidden_dims", *_NAMES),
    **_all("mlp_dims", *parts),
    **_all("dropout", *parts, value=0.43, kind=TRAINING),
    "memory_dim": (7, PARAMETERS),
    "compat": ("mmsa", EVALUATION),
  }


FLAGS = {
  "derl": {
    **_sizes("hidden_dim", "num_layers", "ffn_multiplier"),
    **_rates("derl"),
    "kernel_sizes": ((1, 3, 5), PARAMETERS),
    "num_heads": (4, EVALUATION),
    "attention_scale": ("model", EVALUATION),
    "use_enhancement": (False, PARAMETERS),
    "use_filter": (False, PARAMETERS),
    "variant": ("ie_tav", PARAMETERS),
    "pooling": ("after_mlp", EVALUATION),
  },
  "momke": {
    **_sizes("hidden_dim", value=12),
    **_sizes("num_layers", value=1),
    **dict.fromkeys(
      ("dropout", "attention_dropout", "router_logit_dropout"), (0.43, TRAINING)
    ),
    "num_heads": (4, EVALUATION),
    "mixing": ("uniform", EVALUATION),
    # The same prediction, and further ones, under every condition.
    "stage2_mask": ("mixed", SPEED),
    "condition": ("a", EVALUATION),
    # What a sample is, and how training is planned: not the network's.
    **dict.fromkeys(("level", "stage1_epochs", "stage2_init"), ("", None)),
    **dict.fromkeys(("carry_opt_state", "freeze_experts"), ("", None)),
  },
  "mmolre": {
    **_sizes("hidden_dim", "num_blocks", "task_rank", "ffn_dim", "head_hidden_dim"),
    "shared_ranks": ((1, 2, 3), PARAMETERS),
    "full_rank": (True, PARAMETERS),
    "sharing": ("hard", PARAMETERS),
    "kernel_size": (5, PARAMETERS),
    "second_init": ("zeros", START),
    "num_heads": (4, EVALUATION),
    "dropout": (0.43, TRAINING),
    "attention_dropout": (0.43, TRAINING),
    "task_weights": ("uncertainty", PARAMETERS),
    "modalities": (("text", "vision"), PARAMETERS),
    "tasks": ("", None),  # the corpus here has one
  },
  "awf": {
    **_sizes("feature_dim", "post_dim", value=7),
    "num_post_layers": (2, PARAMETERS),
    "dropout": (0.43, TRAINING),
    "text_encoder": ("bert_cls", EVALUATION),
    "attention_fusion": (False, PARAMETERS),
  },
  "lf_dnn": _late(text_dim=(9, PARAMETERS), text_encoder=("mean", PARAMETERS)),
  "lf_lstm": _late(feature_dim=(9, PARAMETERS)),
  "tfn": _late(text_dim=(9, PARAMETERS), text_encoder=("mean", PARAMETERS)),
  "lmf": _low_rank(),
  "mlmf": _low_rank(**_unimodal()),
  "mlf_dnn": _late(
    **_unimodal(), text_dim=(9, PARAMETERS), text_encoder=("mean", PARAMETERS)
  ),
  "mtfn": _late(
    **_unimodal(), text_dim=(9, PARAMETERS), text_encoder=("mean", PARAMETERS)
  ),
  "ef_lstm": {
    **_sizes("hidden_dim", "num_layers", value=3),
    "dropout": (0.43, TRAINING),
    "compat": ("mmsa", EVALUATION),
  },
  "mfn": _memory("attention", "candidate", "retain", "update", "output"),
  "graph_mfn": {
    **_memory("candidate", "retain", "update", "output"),
    "node_dim": (7, PARAMETERS),
    "bounded": (True, EVALUATION),
  },
  "mult": {
    **_sizes("hidden_dim", value=12),
    **_sizes("num_layers", value=2),
    **_all("kernel_sizes", *_NAMES, value=3),
    **_all("attention_dropout", *_NAMES, value=0.43, kind=TRAINING),
    **_all(
      "dropout",
      *("text", "embed", "relu", "residual", "output"),
      value=0.43,
      kind=TRAINING,
    ),
    "targets": (("text", "audio"), PARAMETERS),
    "num_heads": (4, EVALUATION),
    "positions": (True, EVALUATION),
    "future_mask": (False, EVALUATION),
    "compat": ("mmsa", EVALUATION),
  },
  "text_only": {
    "pool": ("first", EVALUATION),
    "dropout": (0.43, TRAINING),
    "tasks": ("", None),  # the corpus here has one
  },
  "self_mm": {
    **_sizes("hidden_dims.audio", "hidden_dims.vision", value=7),
    **_sizes("feature_dims.audio", "feature_dims.vision", value=7),
    **_sizes("head_dims.text", "head_dims.audio", "head_dims.vision", value=7),
    **_sizes("fusion_dim", value=7),
    **_rates("lf_dnn"),
    "post_dropout": (0.43, TRAINING),
    "text_pool": ("first", EVALUATION),
    "compat": ("mmsa", PARAMETERS),
    # Of the labels that training makes; `self_mm/` has their tests.
    **dict.fromkeys(("exclude_zero", "label_limit"), ("", None)),
  },
  "misa": {
    **_sizes("hidden_dim", "ffn_dim"),
    "num_heads": (4, EVALUATION),
    "cell": ("gru", PARAMETERS),
    "similarity": ("adversarial", PARAMETERS),
    "reverse_weight": ("", None),  # of the discriminator's gradient
    "dropout": (0.43, TRAINING),
    "fusion_dropout": (0.43, TRAINING),
    "compat": ("mmsa", PARAMETERS),
  },
  "tetfn": {
    "hidden_dim": (8, PARAMETERS),
    "num_heads": (4, EVALUATION),
    **_sizes("lstm_dims.audio", "lstm_dims.vision", value=7),
    **_sizes("head_dims.text", "head_dims.audio", "head_dims.vision", value=7),
    **_sizes("fusion_dim", value=7),
    **_sizes(*(f"kernel_sizes.{n}" for n in ("text", "audio", "vision")), value=2),
    **{f"dropout.{n}": (0.43, TRAINING) for n in ("relu", "residual")},
    **{
      f"{group}.{name}": (0.43, TRAINING)
      for group in ("attention_dropout", "head_dropout")
      for name in ("text", "audio", "vision")
    },
    "post_dropout": (0.43, TRAINING),
    "compat": ("mmsa", PARAMETERS),
    # Of the labels that training makes; `self_mm/` has their tests.
    **dict.fromkeys(("exclude_zero", "label_limit"), ("", None)),
  },
  "almt": {
    **_sizes("hidden_dim", "ffn_dim", value=10),
    **_sizes("num_tokens", "embedding_layers", "hyper_layers", "fusion_layers"),
    "num_heads": (4, PARAMETERS),
    "compat": ("mmsa", EVALUATION),
  },
  "mmim": {
    **_sizes("hidden_dims.audio", "hidden_dims.vision", value=7),
    **_sizes("feature_dims.audio", "feature_dims.vision", value=7),
    **_sizes("fusion_dim", value=7),
    **dict.fromkeys(("dropout.audio", "dropout.vision"), (0.43, TRAINING)),
    "post_dropout": (0.43, TRAINING),
    "text_pool": ("first", EVALUATION),
    "bidirectional": (False, PARAMETERS),
    "num_predictor_layers": (2, PARAMETERS),
    "all_pairs": (True, PARAMETERS),
    "memory_batches": ("", None),  # of the entropies; `mmim/` has their tests
    "compat": ("mmsa", PARAMETERS),
  },
  "mag_bert": {
    "beta": (0.1, EVALUATION),
    "dropout": (0.43, TRAINING),
    "post_dropout": (0.43, TRAINING),
    "text_pool": ("first", EVALUATION),
    "compat": ("mmsa", EVALUATION),
  },
  "cenet": {
    "score_scale": (1.0, EVALUATION),
    "dropout": (0.43, TRAINING),
    "text_pool": ("first", EVALUATION),
    "compat": ("mmsa", EVALUATION),
    # Of codes, which vision has not here; of an encoder inside.
    **dict.fromkeys(("embedding", "num_codes", "injection_layer"), ("", None)),
  },
}
NOT_OF_THE_NETWORK = {"task", "dtype"}  # what is predicted; how precisely


def _config(name, changes=()):
  start = {"second_init": "lecun"} if name == "mmolre" else {}
  options = {**tiny_systems.TINY[name], **start, **dict(changes)}
  return changed(
    tiny_systems.config(name), {f"model.{key}": v for key, v in options.items()}
  )


class Built:
  """A network, what it reads, and its programs as text."""

  def __init__(self, name, changes=()):
    self.name, config = name, _config(name, changes)
    self.config, self.model = config, compose.networks(config).inner
    batch = tiny_systems.batch(config)
    available = batch.available.at[1, 0].set(False)
    self.batch = hide_unavailable(
      batch.replace(available=available), keep_lost=SYSTEMS[name].sees_dropped
    )
    self.key = jax.random.key(0)
    self.shapes = jax.eval_shape(self.model.init, self.key, self.batch)

  def parameters(self):
    return jax.tree.map(lambda leaf: leaf.shape, self.shapes["params"])

  def call(self, variables, batch, train):
    rngs = {"dropout": self.key, "noise": self.key}
    mutable = ["batch_stats"] if train else False
    output = self.model.apply(variables, batch, train=train, rngs=rngs, mutable=mutable)
    return output[0] if train else output

  def program(self, train):
    call = functools.partial(self.call, train=train)
    return str(jax.make_jaxpr(call)(self.shapes, self.batch))

  def start(self):
    return str(jax.make_jaxpr(self.model.init)(self.key, self.batch))

  def predictions(self):
    random = np.random.default_rng(0)
    variables = jax.tree.map(
      lambda leaf: jnp.asarray(0.5 * random.normal(size=leaf.shape), leaf.dtype),
      self.shapes,
    )
    if "batch_stats" in variables:
      variables["batch_stats"] = jax.tree.map(jnp.ones_like, variables["batch_stats"])
    run = jax.jit(
      functools.partial(self.call, train=False),
      compiler_options={"xla_backend_optimization_level": 0},
    )
    return np.asarray(run(variables, self.batch).predictions["sentiment"])


@functools.cache
def usual(name):
  return Built(name)


@functools.cache
def seen_of(name, what):
  """Something of the usual network, made once."""
  made = usual(name)
  if what in ("evaluation", "training"):
    return made.program(what == "training")
  return getattr(made, what)()


CASES = [
  pytest.param(name, option, value, kind, id=f"{name}-{option}")
  for name, options in FLAGS.items()
  for option, (value, kind) in options.items()
  if kind
]


@pytest.mark.parametrize(("name", "option", "value", "kind"), CASES)
def test_an_option_changes_what_it_is_for(name, option, value, kind):
  other = Built(name, [(option, value)])
  same = other.parameters() == seen_of(name, "parameters")
  assert same == (kind != PARAMETERS)
  if kind == SPEED:
    assert other.program(False) != seen_of(name, "evaluation")
  if kind in (EVALUATION, SPEED):
    real = np.asarray(other.batch.sample_mask)
    one, two = other.predictions()[real], seen_of(name, "predictions")[real]
    if kind == SPEED:
      np.testing.assert_allclose(one, two, atol=1e-4)
    else:
      assert np.abs(one - two).max() > 1e-3
  elif kind != PARAMETERS:
    assert other.program(False) == seen_of(name, "evaluation")
  if kind == TRAINING:
    assert other.program(True) != seen_of(name, "training")
  if kind == START:
    assert other.start() != seen_of(name, "start")


def test_every_option_of_every_system_is_here():
  assert set(FLAGS) == set(SYSTEMS) - {"hgem"}
  for name, options in FLAGS.items():
    model = flatten(usual(name).config.model)
    assert set(options) == set(model) - NOT_OF_THE_NETWORK, name
