"""The gates of H-GEM: parallel gating units, the four decisions and Gate 3's
information-guided sparse fusion. Everything here is float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from msa_jax.layers.attention import LAYER_NORM_EPSILON
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import masked_mean, masked_softmax
from msa_jax.layers.moe import ExpertBank
from msa_jax.layers.routing import route
from msa_jax.losses.routing import entropy
from msa_jax.typing import Routing

# Near ties must select the same experts whatever the accelerator's matrix units.
_PRECISION = jax.lax.Precision.HIGHEST


class GateUnit(nn.Module):
  """One gating unit: layer norm, hidden layer (ReLU, Eq. 9), scores.

  Attributes:
    hidden_dim: width of the hidden layer.
    num_scores: candidates scored.
    dropout, deterministic: dropout of the hidden layer.
  """

  hidden_dim: int
  num_scores: int
  dropout: float = 0.0
  deterministic: bool = True

  @nn.compact
  def __call__(
    self, view: Float[Array, "b d"], scale: Float[Array, " b"] | None = None
  ) -> Float[Array, "b e"]:
    """Scores a view; the norm would erase a scale that came before it."""
    view = view.astype(jnp.float32)
    hidden = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, name="norm")(view)
    if scale is not None:
      hidden = hidden * scale[:, None]
    hidden = nn.Dense(self.hidden_dim, precision=_PRECISION, name="hidden")(hidden)
    hidden = Dropout(self.dropout, self.deterministic)(nn.relu(hidden))
    return nn.Dense(
      self.num_scores,
      precision=_PRECISION,
      kernel_init=nn.initializers.normal(0.02),
      name="scores",
    )(hidden)


class Gate(nn.Module):
  """Parallel gating units whose scores are averaged over the available views.

  Attributes:
    hidden_dim: hidden width of every unit.
    num_units: number of units.
    experts: names of the candidates e.
    top_k: candidates each row keeps; None, or at least e = all.
    dropout, deterministic: dropout of the units' hidden layer.

  Source: H-GEM (2026), section 2.1 ("N parallel gating units") and Eq. 9.
  """

  hidden_dim: int
  num_units: int
  experts: tuple[str, ...]
  top_k: int | None = None
  dropout: float = 0.0
  deterministic: bool = True

  @nn.compact
  def __call__(
    self,
    views: Float[Array, "b m d"] | Float[Array, "b d"],
    view_mask: Bool[Array, "b m"] | None,
    available: Bool[Array, "b e"],
    view_scale: Float[Array, "b m"] | None = None,
  ) -> Routing:
    """Decides for every sample.

    Args:
      views: what each unit sees, or one view that all share.
      view_mask: False = this unit has nothing to see; None = all see.
      available: which candidates exist.
      view_scale: factor of each unit's view after its norm; None = 1.
    """
    unit = GateUnit(
      self.hidden_dim,
      len(self.experts),
      self.dropout,
      self.deterministic,
      parent=None,
    )
    bank = ExpertBank(unit, self.num_units, name="units")
    if views.ndim == 2:
      scores = bank(views)  # [m b e]
    else:
      scales = () if view_scale is None else (view_scale.T,)
      scores = bank(views.transpose(1, 0, 2), *scales, in_axes=0)
    seen = jnp.ones((*scores.shape[:2], 1), bool)
    if view_mask is not None:
      seen = view_mask.T[..., None]
    logits = masked_mean(scores, jnp.broadcast_to(seen, scores.shape), axis=0)  # [b e]
    narrow = self.top_k is not None and self.top_k < len(self.experts)
    routing = route(logits, self.top_k if narrow else None, available)
    return routing.replace(experts=self.experts)


class OutputGate(nn.Module):
  """The gating units of Gate 3: unit e scores the output of polarity expert e.

  Attributes:
    hidden_dim: hidden width of every unit.
    num_units: polarity experts e.
    dropout, deterministic: dropout of the units' hidden layer.
  """

  hidden_dim: int
  num_units: int
  dropout: float = 0.0
  deterministic: bool = True

  @nn.compact
  def __call__(self, outputs: Float[Array, "e b d"]) -> Float[Array, "b e"]:
    unit = GateUnit(self.hidden_dim, 1, self.dropout, self.deterministic, parent=None)
    bank = ExpertBank(unit, self.num_units, name="units")
    return bank(outputs, in_axes=0)[..., 0].T


def fuse_polarities(scores: Float[Array, "b e"], prior: Routing, k: int) -> Routing:
  """Gate 3: corrects Gate 2's weights by what the selected experts produced.

  Softmax over the selected experts of score + log prior, which is the renormalised
  prior where all scores are zero. With k = 1 a weight over the one selected expert
  would be the constant 1 and no gate would receive a gradient: then the corrected
  expert competes with the prior of the others and keeps its probability.

  Args:
    scores: Gate 3's score of each expert's output.
    prior: Gate 2's routing.
    k: number of experts Gate 2 selects.
  """
  selected = prior.combine > 0
  corrected = prior.logits + jnp.where(selected, scores, 0.0)
  if k == 1:
    weights = masked_softmax(corrected, prior.probs > 0)
    weights = jnp.where(selected, weights, 0.0)
  else:
    weights = masked_softmax(corrected, selected)
  return Routing(weights, weights, scores, prior.experts)


class SparseFusion(nn.Module):
  """Information-guided sparse fusion: Gate 2's routing scales the sparse expert.

  u = [Z, 1 - H(Z) / log E], G = 2 sigmoid(Dense(u)), one gate per modality and
  feature, and H_fusion = mean over available modalities of G_m * S_m. Its kernel and
  bias are this module's own parameters. Source: H-GEM (2026), Eq. 12.
  """

  @nn.compact
  def __call__(
    self,
    routes: Float[Array, "b e"],
    summaries: Float[Array, "b m d"],
    available: Bool[Array, "b m"],
  ) -> Float[Array, "b d"]:
    """Args: Z, the sparse expert's mean state per modality, available modalities."""
    strength = 1.0 - entropy(routes, normalised=True)
    inputs = jnp.concatenate([routes, strength[:, None]], axis=-1)  # [b e+1]
    _, n_modalities, width = summaries.shape
    shape = (inputs.shape[-1], n_modalities * width)
    kernel = self.param("kernel", nn.initializers.normal(0.02), shape)
    bias = self.param("bias", nn.initializers.zeros, shape[1:])
    gates = 2.0 * nn.sigmoid(inputs @ kernel + bias[None])
    gated = gates.reshape(summaries.shape) * summaries.astype(jnp.float32)
    mask = jnp.broadcast_to(available[..., None], gated.shape)
    return masked_mean(gated, mask, axis=1)
