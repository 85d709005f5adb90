"""Graph-MFN: the memory fusion network with a graph of modalities, not attention.

At every step each modality, each pair and so on up to all of them are nodes of a graph;
a node is made of those of its parts, and each edge has an efficacy of its own.

Source: Zadeh et al., Multimodal language analysis in the wild: CMU-MOSEI dataset and
interpretable dynamic fusion graph, ACL 2018, as in MMSA (thuiar/MMSA,
singleTask/Graph_MFN.py), whose networks of the nodes never train: they are not
registered. Here they do, unless `compat` says otherwise.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jax import lax
from jaxtyping import Array, Float

from msa_jax.layers.affine import Affine
from msa_jax.models.aligned import aligned, check_aligned
from msa_jax.models.late_fusion.base import COMPAT, check_by_modality
from msa_jax.models.mfn.parts import GatedMemory, Mlp, before, lockstep
from msa_jax.models.options import check, construct, defaults
from msa_jax.models.outputs import (
  REGRESSION,
  OutputSpec,
  primary_output,
  shape_predictions,
)
from msa_jax.models.system import Options, System
from msa_jax.typing import MODALITIES, Batch, ModelOutput, Spec

# Units between the two linear layers of each of the graph's networks.
_INNER = 100


def subsets(names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
  """Every non-empty subset, smaller ones first.

  >>> subsets(("text", "audio"))
  (('text',), ('audio',), ('text', 'audio'))
  """
  sizes = range(1, len(names) + 1)
  return tuple(
    chosen for size in sizes for chosen in itertools.combinations(names, size)
  )


class FusionGraph(nn.Module):
  """The dynamic fusion graph: nodes for subsets of modalities, and one on top.

  A node of several modalities reads the nodes of all proper subsets, each times an
  efficacy, by two linear layers; the top reads all nodes in the same way. Efficacies
  come from three linear layers on all modalities.

  Attributes:
    node_dim: width of the nodes, but for those of one modality.
    bounded: squashes efficacies into (0, 1) by a sigmoid.
    frozen: the networks of the nodes do not train, as in MMSA.
  """

  node_dim: int
  bounded: bool = False
  frozen: bool = False

  @nn.compact
  def __call__(
    self, views: Mapping[str, Float[Array, "... d"]]
  ) -> tuple[Float[Array, "... c"], Float[Array, "... e"]]:
    """The top [... node_dim], and all efficacies [... e] in the order of their use."""

    def linear(name, values, frozen=False):
      for suffix, units in (("hidden", _INNER), ("out", self.node_dim)):
        layer = Affine((values.shape[-1], units), name=f"{name}_{suffix}")()
        kernel, bias = lax.stop_gradient(layer) if frozen else layer
        values = values @ kernel + bias.reshape(*[1] * (values.ndim - 1), -1)
      return values

    nodes: dict[tuple[str, ...], Array] = {(n,): value for n, value in views.items()}
    uses = [
      (node, [part for part in subsets(node) if part != node])
      for node in subsets(tuple(views))
      if len(node) > 1
    ]
    total = sum(len(parts) for _, parts in uses) + len(subsets(tuple(views)))
    seen = linear("efficacy", jnp.concatenate(list(views.values()), axis=-1))
    efficacies = nn.Dense(total, name="efficacy_each")(seen)
    if self.bounded:
      efficacies = nn.sigmoid(efficacies)
    used = itertools.count()

    def gather(parts):
      weights = [efficacies[..., next(used), None] for _ in parts]
      pairs = zip(parts, weights, strict=True)
      return jnp.concatenate([weight * nodes[part] for part, weight in pairs], -1)

    for node, parts in uses:
      nodes[node] = linear("_".join(node), gather(parts), self.frozen)
    return linear("top", gather(list(nodes))), efficacies


class GraphMFN(nn.Module):
  """The network, by default with MMSA's sizes for MOSI.

    model = GraphMFN()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    output: the task predicted.
    modalities: names in canonical order; every batch must have them, at common steps.
    hidden_dims: modality -> width of its LSTM and of its node.
    memory_dim: width of the memory.
    node_dim: width of nodes of several modalities.
    mlp_dims: hidden units of the `candidate` for the memory, of its gates `retain` and
      `update`, and of the `output`.
    dropout: rates on these units.
    bounded: efficacies of the graph's edges in (0, 1), by a sigmoid; MMSA leaves them
      unbounded.
    compat: `mmsa` = padding counts as steps, frames are averaged in windows, one for
      each step of the text, and the networks of the graph's nodes stay as they begin,
      as in MMSA.
  """

  output: OutputSpec = REGRESSION
  modalities: tuple[str, ...] = MODALITIES
  hidden_dims: Mapping[str, int] = FrozenDict(text=256, audio=32, vision=256)
  memory_dim: int = 300
  node_dim: int = 64
  mlp_dims: Mapping[str, int] = FrozenDict(
    candidate=32, retain=128, update=64, output=256
  )
  dropout: Mapping[str, float] = FrozenDict(
    candidate=0.0, retain=0.5, update=0.5, output=0.0
  )
  bounded: bool = False
  compat: str = "none"

  def __post_init__(self):
    check(
      self,
      choices={"compat": COMPAT},
      positive=("hidden_dims", "memory_dim", "node_dim", "mlp_dims"),
      rates=("dropout",),
    )
    check_by_modality(self, "hidden_dims")
    super().__post_init__()

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool = False) -> ModelOutput:
    """Predicts every sample; reports `last` (the LSTMs' outputs), `memory`, and the
    graph's `efficacies` [b t e].

    Raises:
      UserError: the batch lacks a modality.
    """
    units, rates = self.mlp_dims, self.dropout
    states = lockstep(aligned(batch, self.modalities, self.compat), self.hidden_dims)
    views = {}
    for name, outputs in states.outputs.items():
      change = jnp.concatenate([before(outputs), outputs], axis=-1)
      layer = nn.Dense(self.hidden_dims[name], name=f"view_{name}")
      views[name] = nn.relu(layer(change))
    graph = FusionGraph(
      self.node_dim, self.bounded, self.compat == "mmsa", name="graph"
    )
    top, efficacies = graph(views)
    candidate = Mlp(
      units["candidate"],
      self.memory_dim,
      rates["candidate"],
      not train,
      name="candidate",
    )
    candidates = jnp.tanh(candidate(top))
    memory = GatedMemory(
      self.memory_dim, self.mlp_dims, self.dropout, not train, name="memory"
    )(top, candidates, states.real)
    last = states.last()
    head = Mlp(
      units["output"],
      self.output.num_outputs,
      rates["output"],
      not train,
      name="output",
    )
    values = head(jnp.concatenate([last, memory], axis=-1))
    predictions = {self.output.name: shape_predictions(self.output, values)}
    reported = {"efficacies": jnp.swapaxes(efficacies, 0, 1)}
    return ModelOutput(predictions, {"last": last, "memory": memory, **reported})


def options() -> dict[str, Any]:
  """Options of the system (`config.model`): the fields of `GraphMFN`."""
  return {"name": "graph_mfn", **defaults(GraphMFN)}


def build(options: Options, spec: Spec) -> GraphMFN:
  """Builds the network for a corpus.

  Raises:
    UserError: a value out of range, or modalities that have steps of their own.
  """
  check_aligned("graph_mfn", options["compat"], spec)
  return construct(
    GraphMFN,
    options,
    output=primary_output(options, spec),
    modalities=spec.modalities,
  )


SYSTEM = System(build=build, options=defaults(GraphMFN))
