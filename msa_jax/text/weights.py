"""Hugging Face checkpoints to parameters of `text.bert.TextEncoder`, and back."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from msa_jax.errors import UserError, plain
from msa_jax.safe_io import files
from msa_jax.safe_io.torch_pickles import load_torch
from msa_jax.text.bert import EncoderConfig, config_of

_DENSE = {
  "attention.self.query": "query",
  "attention.self.key": "key",
  "attention.self.value": "value",
  "attention.output.dense": "attention",
  "intermediate.dense": "intermediate",
  "output.dense": "output",
}
_NORMS = {
  "attention.output.LayerNorm": "attention_norm",
  "output.LayerNorm": "output_norm",
}
# What other families call the parts of attention.
_ATTENTION = {
  "mpnet": {
    "attention.self.query": "attention.attn.q",
    "attention.self.key": "attention.attn.k",
    "attention.self.value": "attention.attn.v",
    "attention.output.dense": "attention.attn.o",
    "attention.output.LayerNorm": "attention.LayerNorm",
  },
  "deberta-v2": {
    f"attention.self.{name}": f"attention.self.{name}_proj"
    for name in ("query", "key", "value")
  },
}
_EMBEDDINGS = {
  "embeddings.word_embeddings.weight": "word",
  "embeddings.position_embeddings.weight": "position",
  "embeddings.token_type_embeddings.weight": "type",
  "embeddings.LayerNorm.weight": "scale",
  "embeddings.LayerNorm.bias": "bias",
}
_RELATIVE = {
  "mpnet": {"encoder.relative_attention_bias.weight": "table"},
  "deberta-v2": {
    "encoder.rel_embeddings.weight": "table",
    "encoder.LayerNorm.weight": "scale",
    "encoder.LayerNorm.bias": "bias",
  },
}
# What checkpoints of whole models hold beside the encoder.
_BESIDE = (
  "pooler.",
  "cls.",
  "lm_head.",
  "classifier.",
  "qa_outputs.",
  "lm_predictions.",
  "mask_predictions.",
)
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


class Checkpoint(NamedTuple):
  """A pretrained encoder.

  Attributes:
    config: sizes.
    params: parameters of a `TextEncoder` of which all layers are trained.
    folder: where it was read.
  """

  config: EncoderConfig
  params: Mapping[str, Any]
  folder: Path


def locate(name: str) -> Path:
  """The folder of a checkpoint: a local one, or one of the hub, fetched if need be.

  Raises:
    UserError: no such folder, and not to be had from the hub.
  """
  folder = Path(name).expanduser()
  if folder.is_dir():
    return folder
  if not name or name.startswith((".", "/", "~")) or name.count("/") > 1:
    raise UserError(f"text encoder {name!r}: no such folder, and no name of the hub")
  # Read by the client when it is imported; it would wait long for a dead network.
  os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")
  os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "10")
  try:
    import huggingface_hub
  except ImportError:
    raise UserError(
      f"text encoder {name!r} needs the hub's client: pip install 'msa_jax[text]', or"
      " give the path of a folder with config.json and model.safetensors"
    ) from None
  kept = ["config.json", "*.txt", "tokenizer*", "*.bpe.model", "vocab.json"]
  kept.append("spm.model")
  weights = ["model.safetensors", "pytorch_model.bin"]
  try:
    found = huggingface_hub.snapshot_download(
      name, allow_patterns=[*kept, weights[0]], local_files_only=True
    )
    if not any((Path(found) / each).is_file() for each in weights):
      raise FileNotFoundError(name)
    return Path(found)
  except Exception:  # noqa: BLE001  Not cached: the network is the next to ask.
    pass
  try:
    siblings = huggingface_hub.model_info(name, timeout=5).siblings or ()
    listed = {file.rfilename for file in siblings}
    chosen = next(each for each in weights if each in listed)
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=[*kept, chosen]))
  except Exception as error:  # noqa: BLE001  Whatever the network says, one line.
    raise UserError(
      f"text encoder {name!r} is not cached and cannot be fetched"
      f" ({type(error).__name__}): download config.json, the tokenizer's files and"
      f" model.safetensors from https://huggingface.co/{name} into a folder and give"
      " its path"
    ) from None


def load(name: str) -> Checkpoint:
  """Reads an encoder from a folder or the hub.

  Args:
    name: folder with `config.json` and `model.safetensors` or `pytorch_model.bin`
      (which is read without executing it), or a name of the hub.

  Raises:
    UserError: files absent or damaged, another architecture, or weights that are
      missing, unexpected or of the wrong shape (listed).
  """
  folder = locate(name)
  config = read_config(folder)
  return Checkpoint(config, from_tensors(_tensors(folder), config, folder), folder)


def read_config(folder: Path) -> EncoderConfig:
  """Reads a folder's `config.json`; UserError if there is none or it does not fit."""
  try:
    text = files.regular(folder / "config.json").read_text(encoding="utf-8")
    options = json.loads(text)
    if not isinstance(options, dict):
      raise ValueError("no object")
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f"{folder}: no readable config.json ({plain(error)})") from None
  with files.reading(folder, "config.json"):
    return config_of(options)


def source(folder: Path) -> Path:
  """The file of a folder's weights; UserError if there is none."""
  for name in ("model.safetensors", "pytorch_model.bin"):
    if (folder / name).is_file():
      return folder / name
  raise UserError(f"{folder}: has neither model.safetensors nor pytorch_model.bin")


def _tensors(folder: Path) -> dict[str, np.ndarray]:
  path = source(folder)
  return load_torch(path) if path.suffix == ".bin" else _safetensors(path)


_SAFE = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2", "I64": "<i8"}
_LONGEST_HEADER = 100_000_000  # bytes; that of the format


def _safetensors(path: Path) -> dict[str, np.ndarray]:
  """An eight-byte length, a JSON header and raw bytes. Read here, because the
  library's NumPy reader knows no bfloat16."""
  with files.reading(path, "safetensors file"):
    content = np.memmap(files.regular(path), np.uint8, "r")
    size = int(content[:8].view("<u8")[0])
    if size > min(_LONGEST_HEADER, len(content) - 8):
      raise UserError(
        f"not a readable safetensors file (its header of {size} bytes is longer than"
        " it)"
      )
    header = json.loads(content[8 : 8 + size].tobytes())
    header.pop("__metadata__", None)
    places = {name: _place(name, entry) for name, entry in header.items()}
    end = 0
    for name, (start, stop) in sorted(places.items(), key=lambda item: item[1]):
      if start < end or stop > len(content) - 8 - size:
        raise UserError(f"tensor {name[:60]!r} overlaps another or ends outside")
      end = stop
    tensors = {}
    for name, (start, stop) in places.items():
      raw = content[8 + size + start : 8 + size + stop].tobytes()
      flat = np.frombuffer(raw, _SAFE[header[name]["dtype"]])
      if header[name]["dtype"] == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
      tensors[name] = flat.reshape(header[name]["shape"])
    return tensors


def _place(name: str, entry: Any) -> tuple[int, int]:
  """First byte of a tensor after the header and one past the last, checked."""
  start, stop = entry["data_offsets"]
  kind, shape = entry["dtype"], entry["shape"]
  whole = [start, stop, *shape]
  if kind not in _SAFE or any(type(n) is not int or n < 0 for n in whole):
    raise UserError(f"tensor {name[:60]!r} is of type {str(kind)[:20]} at {start}")
  if stop - start != math.prod(shape) * np.dtype(_SAFE[kind]).itemsize:
    raise UserError(f"tensor {name[:60]!r} has another size than its shape says")
  return start, stop


def _without_prefix(name: str) -> str:
  for prefix in ("bert.", "roberta.", "xlm_roberta.", "mpnet.", "deberta."):
    name = name.removeprefix(prefix)
  # The oldest checkpoints call a norm's scale and shift gamma and beta.
  return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
    "LayerNorm.beta", "LayerNorm.bias"
  )


def _names(config: EncoderConfig) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
  """Name in the checkpoint -> path of the parameter, with the layer last, and shape."""
  d, inner = config.width, config.inner
  rows = {**config.tables, "scale": None, "bias": None}
  names: dict[str, Any] = {
    theirs: (("embeddings", ours), (rows[ours], d) if rows[ours] else (d,))
    for theirs, ours in _EMBEDDINGS.items()
    if ours in rows
  }
  tables = {"mpnet": (config.buckets, config.n_heads)}
  for theirs, ours in _RELATIVE.get(config.family, {}).items():
    shape = tables.get(config.family, (2 * config.buckets, d))
    names[theirs] = (("relative", ours), shape if ours == "table" else (d,))
  called = _ATTENTION.get(config.family, {})
  sizes = {"intermediate": (inner, d), "output": (d, inner)}
  for i in range(config.n_layers):
    at = f"encoder.layer.{i}."
    for name, ours in _DENSE.items():
      theirs = called.get(name, name)
      shape = sizes.get(ours, (d, d))
      names[f"{at}{theirs}.weight"] = (("layers", ours, "kernel", str(i)), shape)
      names[f"{at}{theirs}.bias"] = (("layers", ours, "bias", str(i)), shape[:1])
    for name, ours in _NORMS.items():
      theirs = called.get(name, name)
      names[f"{at}{theirs}.weight"] = (("layers", ours, "scale", str(i)), (d,))
      names[f"{at}{theirs}.bias"] = (("layers", ours, "bias", str(i)), (d,))
  return names


def from_tensors(
  tensors: Mapping[str, np.ndarray], config: EncoderConfig, where: str | Path = ""
) -> dict[str, Any]:
  """Maps named tensors of a checkpoint to parameters (float32).

  Raises:
    UserError: missing or unexpected names, or shapes that the config does not say.
  """
  found = {_without_prefix(name): value for name, value in tensors.items()}
  names = _names(config)
  missing = sorted(names.keys() - found.keys())
  beside = (*_BESIDE, *_BUFFERS)
  unexpected = sorted(
    n for n in found.keys() - names.keys() if not n.startswith(beside)
  )
  if missing or unexpected:
    raise UserError(
      f"{where}: weights missing: {', '.join(missing) or 'none'}; unexpected:"
      f" {', '.join(unexpected) or 'none'}"
    )
  for name, (_, shape) in names.items():
    if found[name].shape != shape:
      raise UserError(
        f"{where}: {name} has shape {found[name].shape}, config.json says {shape}"
      )
  params: dict[str, Any] = {path[0]: {} for path, _ in names.values()}
  for name, (path, _) in names.items():
    value = found[name].astype(np.float32, copy=False)
    if path[0] != "layers":
      params[path[0]][path[1]] = value
    else:
      kinds = params["layers"].setdefault(path[1], {})
      kinds.setdefault(path[2], []).append(value.T)
  for kinds in params["layers"].values():
    kinds.update({kind: np.stack(values) for kind, values in kinds.items()})
  return params


def to_tensors(params: Mapping[str, Any], config: EncoderConfig) -> dict[str, Any]:
  """The reverse of `from_tensors`, of parameters in one or two stacks."""
  params = joined(params)
  tensors = {}
  for name, (path, _) in _names(config).items():
    if path[0] != "layers":
      value = params[path[0]][path[1]]
    else:
      value = params["layers"][path[1]][path[2]][int(path[3])].T
    tensors[name] = np.ascontiguousarray(value, np.float32)
  return tensors


def embedding_names() -> tuple[str, ...]:
  """Names of the embeddings' parameters that checkpoints have."""
  return tuple(_EMBEDDINGS.values())


def joined(params: Mapping[str, Any]) -> dict[str, Any]:
  """The reverse of `split`: all layers in one stack, as NumPy arrays."""
  params = dict(jax.tree.map(np.asarray, dict(params)))
  if "lower" not in params:
    return params
  stacks = [params[name] for name in ("lower", "layers") if name in params]
  # The lower ones may be narrower.
  whole = jax.tree.map(
    lambda *parts: np.concatenate([np.asarray(part, np.float32) for part in parts]),
    *stacks,
  )
  return {**{k: v for k, v in params.items() if k != "lower"}, "layers": whole}


def with_extras(
  embeddings: Mapping[str, np.ndarray], config: EncoderConfig
) -> dict[str, np.ndarray]:
  """Embeddings with the tables of `config.extras`, which start at zero."""
  tables = {
    name: np.zeros((rows, config.width), np.float32) for name, rows in config.extras
  }
  return {**embeddings, **tables}


def split(params: Mapping[str, Any], trained: int) -> dict[str, Any]:
  """Parameters for `TextEncoder(trained=...)`: the lower layers in a stack apart."""
  n_layers = len(params["layers"]["query"]["bias"])
  if not 0 <= trained < n_layers:
    return dict(params)
  cut = n_layers - trained
  parts = {name: part for name, part in params.items() if name != "layers"}
  parts["lower"] = jax.tree.map(lambda leaf: leaf[:cut], params["layers"])
  if trained:
    parts["layers"] = jax.tree.map(lambda leaf: leaf[cut:], params["layers"])
  return parts


def export(
  params: Mapping[str, Any], source: Path, config: EncoderConfig, folder: Path
) -> None:
  """Writes a Hugging Face folder: weights, and the source's config and tokenizer.

  Args:
    params: of a `TextEncoder`; extra embedding tables, which the format has not, are
      left out.
    source: folder of the checkpoint that it was made of.
    config: sizes.
    folder: where to write; made if need be.

  Raises:
    UserError: the package `safetensors` is not installed.
  """
  try:
    from safetensors.numpy import save_file
  except ImportError:
    raise UserError("export needs safetensors: pip install 'msa_jax[text]'") from None
  folder.mkdir(parents=True, exist_ok=True)
  for path in source.iterdir():
    if path.suffix in (".json", ".txt", ".model") and path.is_file():
      (folder / path.name).write_bytes(path.read_bytes())
  plain = dataclasses.replace(config, extras=())
  save_file(
    to_tensors(params, plain), folder / "model.safetensors", metadata={"format": "pt"}
  )
