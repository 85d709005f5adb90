"""H-GEM as a system: its options, how it is built, its route losses.

Source: H-GEM: hierarchical gated expert mixture for multimodal sentiment analysis,
Computer Systems & Applications 2026, 35(3):59-68.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float, Int

from msa_jax.errors import UserError
from msa_jax.losses.routing import discriminative, info_nce, load_balance
from msa_jax.models.hgem.fusion import FUSION_EXPERTS
from msa_jax.models.hgem.network import HGEM
from msa_jax.models.outputs import OutputSpec, primary_output
from msa_jax.models.system import Options, System
from msa_jax.typing import Batch, ModelOutput, Spec

PRESETS = ("small", "paper")

_CHOICES = {
  "use_ids": ("auto", "always", "never"),
  "av_input": ("both", "features", "ids"),
  "vision_expert.pos": ("learned", "none"),
  "gate.combine": ("logits", "probs"),
  "gate0.apply": ("output", "input", "both"),
  "gate3.mode": ("product", "independent"),
  "sparse.k_basis": ("tokens", "features"),
  "dense.out_act": ("gelu", "sigmoid"),
  "robust.blend": ("noisy", "clean"),
  "mi.similarity": ("onehot", "learned"),
  "mi.tau_schedule": ("constant", "linear"),
  "route_label": ("polarity", "round7", "sign2", "class"),
  "fusion": ("moe", "multi", "single", "average", "fixed"),
  "missing_mode": ("mask", "embed"),
  "dispatch": ("dense", "capacity"),
  "dtype": ("float32", "bfloat16"),
}
_TAU_RANGE = (0.18, 0.08)  # the paper's range of temperatures
_AT_LEAST_ONE = (
  *("D", "d", "T", "n_heads", "L_codes", "gate.n_units"),
  *("gate0.k", "gate1.k", "gate2.k", "polarity.n", "experts_per_family"),
)


def options(preset: str = "small") -> ml_collections.ConfigDict:
  """Options of the model (`config.model`).

  Args:
    preset: `paper` (dimensions and parameter budget of the paper) or `small` (the
      same network, narrow; for laptops and tests).

  Raises:
    UserError: unknown preset.
  """
  if preset not in PRESETS:
    raise UserError(f"preset {preset!r}: choose one of {PRESETS}")
  config = _paper()
  if preset == "small":
    config.update(
      {
        "D": 64,
        "d": 32,
        "n_heads": 2,
        "text_expert": {"ffn": 256},
        "vision_expert": {"ffn": 256},
        "audio_expert": {"lstm": 32},
        "gate": {"hidden": (32, 32, 32, 32)},
        "sparse": {"layers": 1, "ffn": 256},
        "dense": {"hidden": 128},
        "robust": {"hidden": 128, "denoiser": 128, "p_slot": 0.1},
        "polarity": {"hidden": 128},
        "head": {"hidden": 32},
      }
    )
  return config


def _paper() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      "name": "hgem",
      "task": "auto",  # the task predicted; auto = sentiment, else emotion
      "dtype": "float32",
      "D": 768,  # width of tokens
      "d": 256,  # width after fusion
      "T": 50,  # greatest number of steps
      "n_heads": 8,
      "L_codes": 16,
      "use_ids": "auto",
      "av_input": "both",
      "text_expert": {"layers": 1, "ffn": 3072},
      "vision_expert": {"conv_k": 3, "layers": 1, "ffn": 1024, "pos": "learned"},
      "audio_expert": {"lstm": 256, "conv_k": 3},  # lstm: width per direction
      "gate": {"hidden": (2048, 2048, 480, 480), "n_units": 3, "combine": "logits"},
      "gate0": {"k": 3, "apply": "output"},
      "gate1": {"k": 2},
      "gate2": {"k": 2},
      "gate3": {"mode": "product"},
      "sparse": {
        "layers": 2,
        "ffn": 3072,
        "r": 0.25,
        "k_basis": "tokens",
        "renorm": False,
      },
      "dense": {"hidden": 2048, "out_act": "gelu"},
      "robust": {
        "hidden": 1024,
        "denoiser": 1024,
        "sigma": 0.1,
        "p_slot": 0.0,
        "blend": "noisy",
        "C_init": 2.0,
      },
      "polarity": {"n": 3, "hidden": 1024, "layers": 2},
      "igsf": {"enabled": True, "stop_grad": False},
      "head": {"hidden": 64},
      "dropout": {
        "embed": 0.1,
        "attn": 0.25,
        "ffn": 0.1,
        "gate": 0.1,
        "expert": 0.1,
        "head": 0.1,
      },
      # Parallel copies of every expert of layers 1 and 2, each with its own gate.
      "experts_per_family": 1,
      # tau_schedule: linear falls through the paper's range, in place of `tau`
      "mi": {
        "tau": 0.12,
        "tau_schedule": "constant",
        "similarity": "onehot",
        "mask_duplicates": False,
      },
      "route_label": "polarity",
      "fusion": "moe",
      "disabled_experts": (),
      "missing_mode": "mask",
      "dispatch": "dense",
      "capacity_factor": 1.25,  # slack of the buffers of dispatch="capacity"
    }
  )


def polarity_names(
  model: ml_collections.FrozenConfigDict, task: OutputSpec
) -> tuple[str, ...]:
  """Names of the polarity experts, by which they can be disabled."""
  n_experts = model.polarity.n
  if model.route_label == "class" and len(task.classes) == n_experts:
    return tuple(task.classes)
  if n_experts == 3:
    return ("negative", "neutral", "positive")
  return tuple(f"polarity_{index}" for index in range(n_experts))


def build(options: Options, spec: Spec) -> HGEM:
  """Builds the network for a corpus.

  Args:
    options: see the function `options`.
    spec: of the corpus.

  Raises:
    UserError: a value out of range, or one that contradicts the corpus.
  """
  model = ml_collections.FrozenConfigDict(options)
  modalities, task = spec.modalities, primary_output(options, spec)
  polarities = polarity_names(model, task)
  _check_values(model)
  _check_experts(model, (modalities, FUSION_EXPERTS, polarities))
  for modality in modalities:
    length = spec.lengths[modality]
    if length > model.T:
      raise UserError(
        f"model.T={model.T}: {modality} has {length} steps; align or shorten the"
        f" data, or choose model.T >= {length}"
      )
  return HGEM(
    options=model,
    modalities=modalities,
    target=task,
    n_route_classes=n_route_classes(model.route_label, task),
    polarities=polarities,
    dtype=jnp.bfloat16 if model.dtype == "bfloat16" else jnp.float32,
  )


def _check_values(model: ml_collections.FrozenConfigDict) -> None:
  def at(path):
    value = model
    for key in path.split("."):
      value = value[key]
    return value

  for path, choices in _CHOICES.items():
    if at(path) not in choices:
      raise UserError(f"model.{path}={at(path)!r}: choose one of {choices}")
  for path in _AT_LEAST_ONE:
    if at(path) < 1:
      raise UserError(f"model.{path}={at(path)}: must be at least 1")
  if model.D % model.n_heads:
    raise UserError(f"model.n_heads={model.n_heads}: must divide model.D={model.D}")
  if len(model.gate.hidden) != 4:
    raise UserError(
      f"model.gate.hidden={model.gate.hidden}: give four widths, of gates 0 to 3"
    )
  if not 0.0 < model.sparse.r <= 1.0:
    raise UserError(f"model.sparse.r={model.sparse.r}: must be in (0, 1]")
  if not model.mi.tau > 0.0:
    raise UserError(f"model.mi.tau={model.mi.tau}: must be above 0")
  for site, rate in model.dropout.items():
    if not 0.0 <= rate < 1.0:
      raise UserError(f"model.dropout.{site}={rate}: must be in [0, 1)")


def _check_experts(
  model: ml_collections.FrozenConfigDict, layers: tuple[tuple[str, ...], ...]
) -> None:
  known = [name for layer in layers for name in layer]
  for name in model.disabled_experts:
    if name not in known:
      raise UserError(f"model.disabled_experts: no expert {name!r}; choose of {known}")
  for layer in layers:
    if set(layer) <= set(model.disabled_experts):
      raise UserError(f"model.disabled_experts: leave at least one of {layer}")


def n_route_classes(rule: str, task: OutputSpec) -> int:
  """Number of classes that `route_label` makes of the task's label.

  Raises:
    UserError: the rule does not fit the kind of task.
  """
  if (rule == "class") == (task.kind == "regression"):
    fitting = "'polarity', 'round7' or 'sign2'"
    fitting = fitting if task.kind == "regression" else "'class'"
    raise UserError(
      f"model.route_label={rule!r} does not fit a task of kind {task.kind!r}:"
      f" choose {fitting}"
    )
  if rule == "class":
    return len(task.classes)
  if rule == "round7":
    return round(task.high) - round(task.low) + 1
  return {"polarity": 3, "sign2": 2}[rule]


def route_classes(
  rule: str, task: OutputSpec, batch: Batch
) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
  """Class of every sample for the route losses, and which samples have one.

  `polarity`: y < 0, = 0, > 0; `round7`: y clipped to the task's range and rounded
  half to even (seven classes on [-3, 3]); `sign2`: y >= 0; `class`: the label itself,
  or the first question answered with yes.
  """
  label = batch.labels[task.name]
  real = label.mask & batch.sample_mask
  if rule == "class":
    if task.kind == "classes":
      return label.value.astype(jnp.int32), real
    yes = label.value == 1  # [b c]
    return jnp.argmax(yes, axis=-1).astype(jnp.int32), real & jnp.any(yes, axis=-1)
  value = jnp.where(real, label.value, 0.0)
  if rule == "polarity":
    classes = jnp.sign(value) + 1
  elif rule == "sign2":
    classes = value >= 0
  else:
    classes = jnp.round(jnp.clip(value, task.low, task.high)) - round(task.low)
  return classes.astype(jnp.int32), real


def temperature(
  model: ml_collections.FrozenConfigDict, progress: Float[Array, ""]
) -> Float[Array, ""]:
  """tau of Eq. 11: `mi.tau`, or linear through the paper's range from .18 to .08."""
  if model.mi.tau_schedule == "constant":
    return jnp.full((), model.mi.tau)
  first, last = _TAU_RANGE
  return first + (last - first) * progress


def auxiliary(
  model: HGEM,
  output: ModelOutput,
  batch: Batch,
  progress: Float[Array, ""],
) -> Mapping[str, jax.Array]:
  """Raw auxiliary losses, each a scalar over the batch's real samples.

  Args:
    model: the network.
    output, batch: predictions and labels.
    progress: share of all steps done, for the schedule of the temperature.

  Returns:
    `disc` (Eq. 10) and `mi` (-I_NCE, Eq. 11) of Gate 2's routes, zero without labels;
    `den`, the denoiser's error; `bal`, load balance of Gate 1 (1 = even). Zero for
    what an ablation leaves out.
  """
  disc = mi = jnp.zeros(())
  routes = output.routing["gate2"].probs
  options, task = model.options, model.target
  if task.name in batch.labels:
    classes, real = route_classes(options.route_label, task, batch)
    real = real & jnp.any(routes > 0, axis=-1)
    disc = discriminative(routes, classes, real)
    mi = info_nce(
      output.features["mi_scores"],
      classes,
      real,
      temperature(options, progress),
      options.mi.mask_duplicates,
    )
  balance = load_balance(output.routing["gate1"], batch.sample_mask)
  return {"disc": disc, "mi": mi, "den": output.losses["den"], "bal": balance}


# Ways to combine the experts (table 3).
FUSIONS = {
  name: {"model.fusion": name} for name in ("average", "fixed", "single", "multi")
}


def selecting_module(options: Options) -> str:
  """Name of the expert whose attention keeps the top k keys (Eqs. 3, 4), if it runs."""
  layered = options.get("fusion", "moe") not in ("average", "fixed")
  left_out = "sparse" in options.get("disabled_experts", ())
  return "sparse" if layered and not left_out else ""


SYSTEM = System(
  build=build,
  auxiliary=auxiliary,
  sees_dropped=True,
  ablations={"fusion": FUSIONS},
  router_variants=FUSIONS,
  robustness={"without_robust": {"model.disabled_experts": ("robust",)}},
  attention=selecting_module,
)
