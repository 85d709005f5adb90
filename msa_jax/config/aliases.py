"""Names that config keys had in earlier versions, so that old runs can be read."""

from collections.abc import Mapping
from typing import Any

FORMAT = 2  # of config.json; 1 (not written) was that of version 0.1

# Dotted key of format 1 -> its name now; None = the option is gone.
RENAMED: dict[str, str | None] = {
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
_LATE_FUSION: dict[str, str | None] = {
  "model.hidden": "model.hidden_dims",
  "model.text_out": "model.text_dim",
  "model.post": "model.post_dim",
  "model.dropout.post": "model.post_dropout",
}
# System -> further keys, of its own options.
RENAMED_OF: dict[str, dict[str, str | None]] = {
  "awf": {
    "model.d": "model.feature_dim",
    "model.post": "model.post_dim",
    "model.post_layers": "model.num_post_layers",
    "model.afusion": "model.attention_fusion",
    "model.afusion_stop_grad": None,
    "model.att_bias": None,
    "model.att_pool": None,
    "model.last_bias": None,
  },
  "hgem": {"model.entropy": None},
  "lf_dnn": _LATE_FUSION,
  "lf_lstm": {**_LATE_FUSION, "model.d": "model.feature_dim"},
  "mmolre": {"loss.balance": "model.task_weights", "loss.task": None},
  "momke": {
    "model.D": "model.hidden_dim",
    "model.depth": "model.num_layers",
    "model.n_heads": "model.num_heads",
    "model.mlp_ratio": None,
    "model.drop": "model.dropout",
    "model.attn_drop": "model.attention_dropout",
    "model.expert_style": None,
    "model.router": None,
  },
  "tfn": _LATE_FUSION,
}


def upgrade(tree: Mapping[str, Any]) -> dict[str, Any]:
  """The tree of a config.json with today's names."""
  tree = dict(tree)
  if tree.pop("format", 1) == FORMAT:
    return tree
  system = tree.get("model", {}).get("name", "")
  for old, new in {**RENAMED, **RENAMED_OF.get(system, {})}.items():
    tree = _moved(tree, old.split("."), new and new.split("."))
  return tree


def _moved(tree: dict[str, Any], old: list[str], new: list[str] | None) -> dict:
  node = tree
  for key in old[:-1]:
    node = node.get(key)
    if not isinstance(node, Mapping):
      return tree
  if old[-1] not in node:
    return tree
  value = node[old[-1]]
  tree = _without(tree, old)
  return tree if new is None else _with(tree, new, value)


def _without(tree: Mapping[str, Any], path: list[str]) -> dict[str, Any]:
  if len(path) == 1:
    return {key: value for key, value in tree.items() if key != path[0]}
  return {**tree, path[0]: _without(tree[path[0]], path[1:])}


def _with(tree: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
  if len(path) == 1:
    return {**tree, path[0]: value}
  return {**tree, path[0]: _with(tree.get(path[0], {}), path[1:], value)}
