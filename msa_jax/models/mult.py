"""MulT: every modality attends to every other one, in transformers of their own.

Each modality is convolved to one width; for each target and each source an encoder lets
the target attend to the source; a further encoder attends over the target's results,
and its last steps are read by a residual MLP.

Source: Tsai et al., Multimodal Transformer for Unaligned Multimodal Language Sequences,
ACL 2019 (arXiv:1906.00295): yaohungt/Multimodal-Transformer with positions, MMSA
(thuiar/MMSA, singleTask/MULT.py) without.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float

from msa_jax.errors import UserError
from msa_jax.layers.convolution import ValidConvolution
from msa_jax.layers.crossmodal import CrossmodalEncoder
from msa_jax.layers.dropout import Dropout
from msa_jax.layers.masking import last_step
from msa_jax.models.late_fusion.base import COMPAT, check_present, with_padding
from msa_jax.models.options import check, defaults
from msa_jax.models.outputs import REGRESSION, OutputSpec, shape_predictions
from msa_jax.models.system import system_of
from msa_jax.typing import MODALITIES, Batch, ModelOutput

# The encoders over a target's results have as many layers, if the others have fewer.
_MEMORY_LAYERS = 3

Sequence = tuple[Float[Array, "b t d"], Bool[Array, "b t"]]


class MulT(nn.Module):
  """The network, by default with MMSA's sizes for MOSI.

    model = MulT()
    variables = model.init(jax.random.key(0), batch)
    output = model.apply(variables, batch)

  Attributes:
    output: the task predicted.
    modalities: names in canonical order; every batch must have them.
    targets: modalities whose encoders are there and read; () = all.
    hidden_dim: width of every modality, d.
    num_heads: attention heads; divides `hidden_dim`.
    num_layers: layers of the encoders between modalities; those after them have three
      at least.
    kernel_sizes: modality -> steps of its convolution, which is left out where the
      modality has `hidden_dim` features already.
    positions: sinusoids in all encoders, as in the original; MMSA has none.
    future_mask: no step attends to later ones than its own, or the difference of the
      two lengths further.
    dropout: rates on text features, on inputs of encoders (`embed`), on hidden units
      of their layers (`relu`), on what these add (`residual`), and on hidden units of
      the `output`'s MLP.
    attention_dropout: rate on attention probabilities, by source; encoders over a
      target's results have that of text.
    compat: `mmsa` = padding is attended to and the last step is read wherever it lies,
      as in both published codes.
    dtype: compute type, `float32` or `bfloat16`.
  """

  output: OutputSpec = REGRESSION
  modalities: tuple[str, ...] = MODALITIES
  targets: tuple[str, ...] = ()
  hidden_dim: int = 50
  num_heads: int = 10
  num_layers: int = 4
  kernel_sizes: Mapping[str, int] = FrozenDict(text=5, audio=5, vision=5)
  positions: bool = False
  future_mask: bool = True
  dropout: Mapping[str, float] = FrozenDict(
    text=0.5, embed=0.2, relu=0.0, residual=0.0, output=0.5
  )
  attention_dropout: Mapping[str, float] = FrozenDict(text=0.3, audio=0.2, vision=0.0)
  compat: str = "none"
  dtype: str = "float32"

  def __post_init__(self):
    check(
      self,
      choices={"compat": COMPAT, "dtype": ("float32", "bfloat16")},
      positive=("hidden_dim", "num_heads", "num_layers", "kernel_sizes"),
      rates=("dropout", "attention_dropout"),
    )
    if self.hidden_dim % self.num_heads:
      raise UserError(
        f"model.num_heads={self.num_heads} must divide model.hidden_dim="
        f"{self.hidden_dim}."
      )
    unknown = [name for name in self.targets if name not in self.modalities]
    if unknown:
      raise UserError(
        f"model.targets names {unknown[0]!r}; choose of {self.modalities}, or () for"
        " all."
      )
    super().__post_init__()

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool = False) -> ModelOutput:
    """Predicts every sample; reports `last`, the head's input.

    Raises:
      UserError: the batch lacks a modality.
    """
    projected = self._projected(batch, train)
    targets = self.targets or self.modalities
    targets = tuple(name for name in self.modalities if name in targets)
    last = jnp.concatenate(
      [self._target(name, projected, train) for name in targets], axis=-1
    )
    hidden = nn.relu(self._dense(last.shape[-1], "hidden")(last))
    hidden = Dropout(self.dropout["output"], not train, name="drop_output")(hidden)
    read = last + self._dense(last.shape[-1], "residual")(hidden)
    values = self._dense(self.output.num_outputs, "out")(read).astype(jnp.float32)
    predictions = {self.output.name: shape_predictions(self.output, values)}
    return ModelOutput(predictions, {"last": last})

  @nn.nowrap
  def _dense(self, width: int, name: str) -> nn.Dense:
    return nn.Dense(width, dtype=jnp.dtype(self.dtype), name=name)

  @nn.nowrap
  def _projected(self, batch: Batch, train: bool) -> dict[str, Sequence]:
    """Modality -> its sequence at the common width, and what of it is real."""
    check_present(self.modalities, batch)
    if self.compat == "mmsa":
      batch = with_padding(batch)
    found = {}
    for name in self.modalities:
      values, mask = batch.modalities[name].features, batch.modalities[name].mask
      if name == "text":
        values = Dropout(self.dropout["text"], not train, name="drop_text")(values)
      if values.shape[-1] == self.hidden_dim:
        found[name] = jnp.where(mask[..., None], values, 0.0), mask
        continue
      size = self.kernel_sizes.get(name, 1)
      layer = ValidConvolution(
        self.hidden_dim, size, jnp.dtype(self.dtype), name=f"project_{name}"
      )
      found[name] = layer(values, mask)
    return found

  @nn.nowrap
  def _target(
    self, name: str, projected: Mapping[str, Sequence], train: bool
  ) -> jax.Array:
    """The last step of what a modality makes of the others, [b n*d]."""
    values, mask = projected[name]
    sources = [other for other in self.modalities if other != name]
    results = [
      self._encoder(f"{name}_with_{other}", other, self.num_layers, train)(
        values, mask, *projected[other]
      )
      for other in sources
    ]
    memory = jnp.concatenate(results or [values], axis=-1)
    layers = max(self.num_layers, _MEMORY_LAYERS)
    memory = self._encoder(f"{name}_memory", "text", layers, train)(memory, mask)
    return last_step(memory, mask)

  @nn.nowrap
  def _encoder(
    self, name: str, source: str, layers: int, train: bool
  ) -> CrossmodalEncoder:
    return CrossmodalEncoder(
      n_layers=layers,
      n_heads=self.num_heads,
      positions=self.positions,
      future_mask=self.future_mask,
      zero_is_padding=self.compat == "mmsa",
      embed_dropout=self.dropout["embed"],
      attention_dropout=self.attention_dropout.get(source, 0.0),
      relu_dropout=self.dropout["relu"],
      residual_dropout=self.dropout["residual"],
      deterministic=not train,
      dtype=jnp.dtype(self.dtype),
      name=name,
    )


def options() -> dict[str, Any]:
  """Options of the system (`config.model`): the fields of `MulT`."""
  return {"name": "mult", **defaults(MulT)}


SYSTEM = system_of(MulT)
