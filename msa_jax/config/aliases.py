"""Names that config keys had in earlier versions, so that old runs can be read."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from msa_jax.errors import UserError

# Of config.json; 1 (not written) was that of version 0.1, 2 lacks what `EARLIER` has
# and ways of losing steps in the names of patterns.
FORMAT = 3


class Only(NamedTuple):
  """An option that is gone, for only one of its values is left.

  Attributes:
    value: the one left; runs that had another cannot be read.
  """

  value: Any


class Recoded(NamedTuple):
  """An option some of whose values have other names.

  Attributes:
    values: old name -> the name now.
  """

  values: Mapping[Any, Any]


# What became of an option: its key now, None (gone), or one of the above.
Fate = str | None | Only | Recoded

# Dotted key of format 1 -> its name now; None = the option is gone.
RENAMED: dict[str, Fate] = {
  "optim.lr_new": "optim.learning_rate",
  "optim.warmup": "optim.warmup_fraction",
  "optim.clip": "optim.grad_clip_norm",
  "optim.average": "optim.ema_decay",
  "optim.batch": "optim.batch_size",
  "text.lr": "text.learning_rate",
  "train.select": "train.monitor",
  "train.selection": "train.selection_split",
  "train.eval_batch": "train.eval_batch_size",
  "loss.aux_warmup": "loss.aux_warmup_fraction",
  "data.joint": "data.extra_train_paths",
  "data.joint_evaluation": "data.extra_evaluation",
  "data.pseudo": "data.pseudo_label_run",
  "data.unit": "data.sample_unit",
  "data.train_share": "data.train_fraction",
  "data.codes": "data.num_frame_clusters",
  "replicas.sweep": None,
}
_LATE_FUSION: dict[str, Fate] = {
  "model.hidden": "model.hidden_dims",
  "model.text_out": "model.text_dim",
  "model.post": "model.post_dim",
  "model.dropout.post": "model.post_dropout",
}
# System -> further keys, of its own options.
RENAMED_OF: dict[str, dict[str, Fate]] = {
  "awf": {
    "model.d": "model.feature_dim",
    "model.post": "model.post_dim",
    "model.post_layers": "model.num_post_layers",
    "model.afusion": "model.attention_fusion",
    "model.afusion_stop_grad": Only(True),
    "model.att_bias": Only(False),
    "model.att_pool": Only("mean"),
    "model.last_bias": Only(False),
  },
  "hgem": {
    "model.D": "model.token_dim",
    "model.d": "model.fused_dim",
    "model.T": "model.max_steps",
    "model.n_heads": "model.num_heads",
    "model.L_codes": "model.num_codes",
    "model.text_expert.layers": "model.text_expert.num_layers",
    "model.text_expert.ffn": "model.text_expert.ffn_dim",
    "model.vision_expert.conv_k": "model.vision_expert.kernel_size",
    "model.vision_expert.layers": "model.vision_expert.num_layers",
    "model.vision_expert.ffn": "model.vision_expert.ffn_dim",
    "model.vision_expert.pos": Only("learned"),
    "model.audio_expert.lstm": "model.audio_expert.lstm_dim",
    "model.audio_expert.conv_k": "model.audio_expert.kernel_size",
    "model.gate.hidden": "model.gates.hidden_dims",
    "model.gate.n_units": "model.gates.num_units",
    "model.gate.combine": Only("logits"),
    "model.gate": None,
    "model.gate0.k": Only(3),
    "model.gate0.apply": Only("output"),
    "model.gate0": None,
    "model.gate1.k": "model.gates.fusion_top_k",
    "model.gate1": None,
    "model.gate2.k": "model.gates.polarity_top_k",
    "model.gate2": None,
    "model.gate3.mode": Only("product"),
    "model.gate3": None,
    "model.sparse.layers": "model.sparse_expert.num_layers",
    "model.sparse.ffn": "model.sparse_expert.ffn_dim",
    "model.sparse.r": "model.sparse_expert.keep_fraction",
    "model.sparse.k_basis": Only("tokens"),
    "model.sparse.renorm": Only(False),
    "model.sparse": None,
    "model.dense.hidden": "model.dense_expert.hidden_dim",
    "model.dense.out_act": Only("gelu"),
    "model.dense": None,
    "model.robust.hidden": "model.robust_expert.hidden_dim",
    "model.robust.denoiser": "model.robust_expert.denoiser_dim",
    "model.robust.sigma": "model.robust_expert.noise_std",
    "model.robust.p_slot": "model.robust_expert.slot_dropout",
    "model.robust.blend": Only("noisy"),
    "model.robust": None,  # C_init: where a parameter started
    "model.polarity.n": "model.polarity_experts.num_experts",
    "model.polarity.hidden": "model.polarity_experts.hidden_dim",
    "model.polarity.layers": "model.polarity_experts.num_layers",
    "model.polarity": None,
    "model.igsf.enabled": "model.info_guided_fusion",
    "model.igsf": None,  # stop_grad: of training alone
    "model.head.hidden": "model.head_dim",
    "model.head": None,
    "model.dropout.attn": "model.dropout.attention",
    "model.mi.tau": "model.route_temperature",
    "model.mi.similarity": Only("onehot"),
    "model.mi": None,  # tau_schedule, mask_duplicates: of training alone
    "model.route_label": None,
    "model.fusion": Recoded({"moe": "multi"}),
    "model.experts_per_family": Only(1),
    "model.av_input": Only("both"),
    "model.use_ids": Only("auto"),
    "model.entropy": None,
    "loss.disc": "loss.route_discrimination",
    "loss.mi": "loss.route_mi",
    "loss.den": "loss.denoising",
    "loss.bal": "loss.load_balance",
  },
  "derl": {
    "model.d": "model.hidden_dim",
    "model.n_heads": "model.num_heads",
    "model.n_layers": "model.num_layers",
    "model.ffn_mult": "model.ffn_multiplier",
    "model.kernels": "model.kernel_sizes",
    "model.attn_scale": "model.attention_scale",
    "model.use_eu": "model.use_enhancement",
    "model.use_fu": "model.use_filter",
    "model.pool": "model.pooling",
    "model.dropout.eu": "model.dropout.enhancement",
    "model.dropout.attn": "model.dropout.attention",
    "model.dropout.res": "model.dropout.residual",
    "model.input_norm": Only("batch"),
    "model.pe": Only("sin"),
    "model.norm_style": Only("post"),
    "model.eu_norm": Only("row"),
    "model.gate_last": Only(False),
    "model.cie_source": Only("enhanced"),
    "model.share_gates": Only(False),
    "model.dis": Only("l2"),
    "loss.dis": "loss.dissimilarity",
  },
  "mmolre": {
    "model.d": "model.hidden_dim",
    "model.n_blocks": "model.num_blocks",
    "model.ranks": "model.shared_ranks",
    "model.ts_rank": "model.task_rank",
    "model.kernel": "model.kernel_size",
    "model.w2_init": "model.second_init",
    "model.n_heads": "model.num_heads",
    "model.ffn": "model.ffn_dim",
    "model.head_hidden": "model.head_hidden_dim",
    "model.attn_dropout": "model.attention_dropout",
    "model.share_blocks": Only(False),
    "model.act": Only("gelu"),
    "model.residual": Only(True),
    "model.router_level": Only("utterance"),
    "model.router_scope": Only("all"),
    "model.top_k": Only(0),
    "model.fusion": Only("cross_gate"),
    "model.dispatch": None,
    "loss.sa": "loss.sentiment",
    "loss.er": "loss.emotion",
    "loss.er_weight": "loss.emotion_weight",
    "loss.er_pos_weight": "loss.emotion_positive_weight",
    "loss.bal": "loss.load_balance",
    "loss.balance": "model.task_weights",
    "loss.task": None,
  },
  "momke": {
    "model.D": "model.hidden_dim",
    "model.depth": "model.num_layers",
    "model.n_heads": "model.num_heads",
    "model.mlp_ratio": Only(1),
    "model.drop": "model.dropout",
    "model.attn_drop": "model.attention_dropout",
    "model.expert_style": Only("official"),
    "model.router": Only("three_way"),
  },
  "lf_dnn": _LATE_FUSION,
  "lf_lstm": {**_LATE_FUSION, "model.d": "model.feature_dim"},
  "tfn": _LATE_FUSION,
}


# System -> options that formats 1 and 2 lack, with the values that those runs had.
EARLIER: dict[str, dict[str, Any]] = {
  "hgem": {
    "model.gates.modality_scale": "outputs",
    "model.sparse_expert.keep_share_of": "nominal",
    "model.info_guided_norm": False,
  }
}


def upgrade(tree: Mapping[str, Any]) -> dict[str, Any]:
  """The tree of a config.json with today's names.

  Raises:
    UserError: an option had a value that this version no longer knows.
  """
  tree = dict(tree)
  written = tree.pop("format", 1)
  if written == FORMAT:
    return tree
  system = tree.get("model", {}).get("name", "")
  if written == 1:
    for old, new in {**RENAMED, **RENAMED_OF.get(system, {})}.items():
      tree = _moved(tree, old, new)
  for key, value in EARLIER.get(system, {}).items():
    tree = _with(tree, key.split("."), value)
  return _with_old_patterns(tree)


def _with_old_patterns(tree: dict[str, Any]) -> dict[str, Any]:
  """Names what `tokens:R` and `frames:R` meant in formats 1 and 2: rows of features
  that are lost, wherever no encoder was trained along."""
  text = tree.get("text", {})
  finetune = str(text.get("finetune", "none")).lower()
  if text.get("input") == "encoder" and finetune not in ("none", "false"):
    return tree
  for key in ("train", "eval"):
    name, _, rate = str(tree.get("missing", {}).get(key, "")).strip().partition(":")
    now = {"tokens": f"features:{rate}:ends", "frames": f"frames:{rate}:ends"}
    if name in now:
      tree = _with(tree, ["missing", key], now[name])
  return tree


def _moved(tree: dict[str, Any], old: str, new: Fate) -> dict:
  *sections, last = path = old.split(".")
  node = tree
  for key in sections:
    node = node.get(key)
    if not isinstance(node, Mapping):
      return tree
  if last not in node:
    return tree
  value = node[last]
  if isinstance(new, Only) and value != new.value:
    raise UserError(
      f"{old}={value!r} must be {new.value!r}, the only value that is left."
    )
  if isinstance(new, Recoded):
    return _with(tree, path, new.values.get(value, value))
  tree = _without(tree, path)
  return _with(tree, new.split("."), value) if isinstance(new, str) else tree


def _without(tree: Mapping[str, Any], path: list[str]) -> dict[str, Any]:
  if len(path) == 1:
    return {key: value for key, value in tree.items() if key != path[0]}
  return {**tree, path[0]: _without(tree[path[0]], path[1:])}


def _with(tree: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
  if len(path) == 1:
    return {**tree, path[0]: value}
  return {**tree, path[0]: _with(tree.get(path[0], {}), path[1:], value)}
