"""Whisper's encoder out of a CTranslate2 file or a Hugging Face folder."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from msa_jax.errors import UserError
from msa_jax.safe_io import files

_KINDS = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_OLDEST, _NEWEST = 4, 6  # versions of the format that name the type of a variable
_MOST_VARIABLES = 100_000
_BLOCK_PARTS = {
  "self_attention/layer_norm": "attention_norm",
  "self_attention/linear_0": "attention_0",
  "self_attention/linear_1": "attention_1",
  "ffn/layer_norm": "ffn_norm",
  "ffn/linear_0": "ffn_0",
  "ffn/linear_1": "ffn_1",
}
_HUGGING_FACE = {
  "self_attn_layer_norm": "self_attention/layer_norm",
  "self_attn.out_proj": "self_attention/linear_1",
  "final_layer_norm": "ffn/layer_norm",
  "fc1": "ffn/linear_0",
  "fc2": "ffn/linear_1",
}


def load(folder: Path) -> tuple[Path, dict[str, Any]]:
  """The file that was read, and parameters of a `whisper.WhisperEncoder`.

  Raises:
    UserError: neither a `model.bin` of CTranslate2 nor a `model.safetensors` of
      Whisper, or a damaged one.
  """
  binary, tensors = folder / "model.bin", folder / "model.safetensors"
  if binary.is_file():
    with files.reading(binary, "CTranslate2 model"):
      return binary, parameters(read_ctranslate2(binary, "encoder/"))
  if not tensors.is_file():
    raise UserError(f"{folder}: neither model.bin nor model.safetensors is there")
  try:
    from safetensors.numpy import load_file
  except ImportError:
    raise UserError(
      f"{tensors} is read by safetensors: pip install 'msa_jax[text]'"
    ) from None
  with files.reading(tensors, "safetensors file"):
    return tensors, parameters(_of_hugging_face(load_file(tensors)))


def read_ctranslate2(path: Path, prefix: str) -> dict[str, np.ndarray]:
  """Variables of a CTranslate2 model, as float32; weights of 8 bits are unscaled.

  Args:
    path: of `model.bin`.
    prefix: of the variables that are read; the others are passed over.

  Raises:
    UserError: another format, or sizes that the file does not have.
  """
  size, found = path.stat().st_size, {}
  with path.open("rb") as stream:
    (version,) = _unpack(stream, "<I")
    if not _OLDEST <= version <= _NEWEST:
      raise UserError(
        f"version {version} of the format; {_OLDEST} to {_NEWEST} are read"
      )
    _string(stream)  # the kind of model
    _, count = _unpack(stream, "<II")
    if count > _MOST_VARIABLES:
      raise UserError(f"{count} variables; it is damaged")
    for _ in range(count):
      name = _string(stream)
      (rank,) = _unpack(stream, "<B")
      shape = _unpack(stream, f"<{rank}I")
      kind, length = _unpack(stream, "<BI")
      if length > size - stream.tell():
        raise UserError(f"{name[:60]!r} ends outside the file; it is cut off")
      if not name.startswith(prefix):
        stream.seek(length, 1)
        continue
      if kind not in _KINDS:
        raise UserError(f"{name[:60]!r} is of an unknown type ({kind})")
      array = np.frombuffer(stream.read(length), _KINDS[kind])
      if array.size != int(np.prod(shape, dtype=np.int64)):
        raise UserError(f"{name[:60]!r} has another size than it says")
      found[name.removeprefix(prefix)] = array.reshape(shape)
  return {
    name: _unscaled(name, array, found)
    for name, array in found.items()
    if not name.endswith("_scale")
  }


def _unscaled(name: str, array: np.ndarray, found: Mapping[str, np.ndarray]):
  scale = found.get(f"{name}_scale")
  if scale is None:
    return array.astype(np.float32)
  scale = scale.astype(np.float32).reshape(-1, *[1] * (array.ndim - 1))
  return array.astype(np.float32) / scale


def _unpack(stream: BinaryIO, layout: str) -> tuple[Any, ...]:
  content = stream.read(struct.calcsize(layout))
  try:
    return struct.unpack(layout, content)
  except struct.error:
    raise UserError("it is cut off") from None


def _string(stream: BinaryIO) -> str:
  (length,) = _unpack(stream, "<H")
  return stream.read(length).rstrip(b"\0").decode("utf-8", "replace")


def _of_hugging_face(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Variables by CTranslate2's names."""
  found: dict[str, np.ndarray] = {}
  own = {
    name.partition("encoder.")[2]: value.astype(np.float32)
    for name, value in tensors.items()
    if "encoder." in name and "decoder." not in name
  }
  for name in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"):
    found[name.replace(".", "/")] = _taken(own, name)
  layers = 1 + max(
    (int(n.split(".")[1]) for n in own if n.startswith("layers.")), default=-1
  )
  for number in range(layers):
    for theirs, ours in _HUGGING_FACE.items():
      norm = ours.endswith("norm")
      for kind, here in (("weight", "gamma"), ("bias", "beta")) if norm else _SAME:
        value = _taken(own, f"layers.{number}.{theirs}.{kind}")
        found[f"layer_{number}/{ours}/{here}"] = value
    at = f"layers.{number}.self_attn"
    query, key, value = (_taken(own, f"{at}.{part}_proj.weight") for part in "qkv")
    biases = [_taken(own, f"{at}.q_proj.bias"), np.zeros(len(key), np.float32)]
    biases.append(_taken(own, f"{at}.v_proj.bias"))  # keys have none
    place = f"layer_{number}/self_attention/linear_0"
    found[f"{place}/weight"] = np.concatenate([query, key, value])
    found[f"{place}/bias"] = np.concatenate(biases)
  found["layer_norm/gamma"] = _taken(own, "layer_norm.weight")
  found["layer_norm/beta"] = _taken(own, "layer_norm.bias")
  return found


_SAME = (("weight", "weight"), ("bias", "bias"))


def parameters(variables: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Parameters of a `whisper.WhisperEncoder` from CTranslate2's variables.

  Raises:
    UserError: a variable is not there.
  """
  found: dict[str, Any] = {
    name: {
      "kernel": _taken(variables, f"{name}/weight").transpose(2, 1, 0),
      "bias": _taken(variables, f"{name}/bias"),
    }
    for name in ("conv1", "conv2")
  }
  found["norm"] = _norm(variables, "layer_norm")
  layers = {name.partition("/")[0] for name in variables if name.startswith("layer_")}
  for layer in sorted(layers - {"layer_norm"}):
    for theirs, ours in _BLOCK_PARTS.items():
      place = f"{layer}/{theirs}"
      found[f"{layer}_{ours}"] = (
        _norm(variables, place)
        if ours.endswith("norm")
        else {
          "kernel": _taken(variables, f"{place}/weight").T,
          "bias": _taken(variables, f"{place}/bias"),
        }
      )
  return found


def _norm(variables: Mapping[str, np.ndarray], place: str) -> dict[str, np.ndarray]:
  return {
    "scale": _taken(variables, f"{place}/gamma"),
    "bias": _taken(variables, f"{place}/beta"),
  }


def _taken(variables: Mapping[str, np.ndarray], name: str) -> np.ndarray:
  if name not in variables:
    raise UserError(f"no Whisper encoder: {name!r} is not there")
  return variables[name]
