"""Whisper's encoder against one in NumPy, its weights from files, its log-mel."""

import math
import struct

import jax
import numpy as np
import pytest
from tiny_clips import RATE, tone, wav

from msa_jax.clips import mel, whisper, whisper_weights
from msa_jax.clips.decode import Clip
from msa_jax.errors import UserError

WIDTH, BANDS, LAYERS = 64, 12, 2


@pytest.fixture(scope="module")
def variables():
  """A random encoder by CTranslate2's names."""
  random = np.random.default_rng(0)

  def draw(*shape):
    return random.normal(0, 1.5 / math.sqrt(shape[-1]), shape).astype(np.float32)

  shapes = {
    "conv1": (WIDTH, BANDS, 3),
    "conv2": (WIDTH, WIDTH, 3),
    **{f"layer_{i}/self_attention/linear_0": (3 * WIDTH, WIDTH) for i in range(LAYERS)},
    **{f"layer_{i}/self_attention/linear_1": (WIDTH, WIDTH) for i in range(LAYERS)},
    **{f"layer_{i}/ffn/linear_0": (4 * WIDTH, WIDTH) for i in range(LAYERS)},
    **{f"layer_{i}/ffn/linear_1": (WIDTH, 4 * WIDTH) for i in range(LAYERS)},
  }
  found = {}
  for name, shape in shapes.items():
    found[f"{name}/weight"], found[f"{name}/bias"] = draw(*shape), draw(shape[0])
  parts = [f"layer_{i}/{p}" for i in range(LAYERS) for p in ("self_attention", "ffn")]
  for place in ["layer_norm", *(f"{part}/layer_norm" for part in parts)]:
    found[f"{place}/gamma"], found[f"{place}/beta"] = 1 + draw(WIDTH), draw(WIDTH)
  return found


def write(path, variables, scaled=(), version=6):
  """A `model.bin`; a variable of another part stands before those of the encoder."""

  def entry(name, array, kind):
    title = f"{name}\0".encode()
    shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
    content = array.tobytes()
    size = struct.pack("<BI", kind, len(content))
    return struct.pack("<H", len(title)) + title + shape + size + content

  entries = [entry("decoder/embeddings/weight", np.ones((3, 2), np.float32), 0)]
  for name, array in variables.items():
    if name in scaled:
      scale = (127.0 / np.abs(array).max(axis=1)).astype(np.float32)
      whole = np.round(array * scale[:, None]).astype(np.int8)
      entries.append(entry(f"encoder/{name}", whole, 1))
      entries.append(entry(f"encoder/{name}_scale", scale, 0))
    else:
      entries.append(entry(f"encoder/{name}", array.astype(np.float16), 4))
  kind = b"WhisperSpec\0"
  head = struct.pack("<IH", version, len(kind)) + kind
  path.write_bytes(head + struct.pack("<II", 3, len(entries)) + b"".join(entries))


def oracle(variables, mels):
  """The encoder in float64, a step at a time where that is plainer."""
  v = {name: array.astype(np.float64) for name, array in variables.items()}
  erf = np.vectorize(math.erf)

  def gelu(x):
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))

  def conv(x, name, stride):
    padded = np.pad(x, ((1, 1), (0, 0)))
    rows = [
      np.einsum("oik,ki->o", v[f"{name}/weight"], padded[t : t + 3])
      for t in range(0, len(x), stride)
    ]
    return gelu(np.array(rows) + v[f"{name}/bias"])

  def norm(x, name):
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return centred / deviation * v[f"{name}/gamma"] + v[f"{name}/beta"]

  def dense(x, name):
    return x @ v[f"{name}/weight"].T + v[f"{name}/bias"]

  x = conv(conv(mels.astype(np.float64), "conv1", 1), "conv2", 2)
  rate = 10000 ** (-np.arange(WIDTH // 2) / (WIDTH // 2 - 1))
  angle = np.arange(len(x))[:, None] * rate
  x = x + np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
  for i in range(LAYERS):
    at = f"layer_{i}/self_attention"
    query, key, value = np.split(
      dense(norm(x, f"{at}/layer_norm"), f"{at}/linear_0"), 3, 1
    )
    weights = np.exp(query @ key.T / math.sqrt(WIDTH))
    x = x + dense(weights / weights.sum(1, keepdims=True) @ value, f"{at}/linear_1")
    at = f"layer_{i}/ffn"
    y = gelu(dense(norm(x, f"{at}/layer_norm"), f"{at}/linear_0"))
    x = x + dense(y, f"{at}/linear_1")
  return norm(x, "layer_norm")


@pytest.fixture(scope="module")
def encoder(variables, tmp_path_factory):
  folder = tmp_path_factory.mktemp("whisper")
  write(folder / "model.bin", variables)
  return whisper.Encoder.of_folder(folder)


def test_states_are_those_of_the_oracle_whatever_the_padding(encoder, variables):
  half = {name: array.astype(np.float16) for name, array in variables.items()}
  mels = np.random.default_rng(1).normal(size=(37, BANDS)).astype(np.float32)
  expected = oracle(half, mels)
  np.testing.assert_allclose(encoder.states(mels), expected, atol=2e-5)
  # Whatever stands in the padding.
  run = jax.jit(whisper.WhisperEncoder(LAYERS, WIDTH, 1).apply)
  padded = np.full((1, 60, BANDS), 7.0, np.float32)
  padded[0, :37] = mels
  found = run({"params": encoder._params}, padded, (np.arange(60) < 37)[None])
  np.testing.assert_allclose(found[0, :19], expected, atol=2e-5)


def test_eight_bit_weights_are_unscaled(variables, tmp_path):
  name = "layer_0/ffn/linear_0/weight"
  write(tmp_path / "model.bin", variables, scaled=[name])
  found = whisper_weights.read_ctranslate2(tmp_path / "model.bin", "encoder/")
  assert found.keys() == variables.keys()
  step = np.abs(variables[name]).max(axis=1, keepdims=True) / 127
  assert (np.abs(found[name] - variables[name]) <= 0.51 * step).all()


def test_a_hugging_face_folder_gives_the_same_parameters(variables, tmp_path):
  from safetensors.numpy import save_file

  tensors = {}
  for name, array in variables.items():
    place, _, kind = name.rpartition("/")
    kind = {"gamma": "weight", "beta": "bias"}.get(kind, kind)
    place = place.replace("layer_0/", "layers.0.").replace("layer_1/", "layers.1.")
    place = place.replace("self_attention/layer_norm", "self_attn_layer_norm")
    place = place.replace("ffn/layer_norm", "final_layer_norm")
    place = place.replace("self_attention/linear_1", "self_attn.out_proj")
    place = place.replace("ffn/linear_0", "fc1").replace("ffn/linear_1", "fc2")
    if "linear_0" in place:
      at = place.replace("self_attention/linear_0", "self_attn")
      for part, value in zip("qkv", np.split(array, 3), strict=True):
        if (part, kind) != ("k", "bias"):
          tensors[f"model.encoder.{at}.{part}_proj.{kind}"] = value
    else:
      tensors[f"model.encoder.{place}.{kind}"] = array
  tensors["model.decoder.layers.0.fc1.weight"] = np.ones(2, np.float32)
  save_file(
    {n: np.ascontiguousarray(t) for n, t in tensors.items()},
    tmp_path / "model.safetensors",
  )
  _, found = whisper_weights.load(tmp_path)
  expected = whisper_weights.parameters(variables)
  for layer in range(LAYERS):  # Hugging Face's keys have no bias
    expected[f"layer_{layer}_attention_0"]["bias"][WIDTH : 2 * WIDTH] = 0
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda raw: raw[:-9], "cut off"),
    (lambda raw: raw[:3], "cut off"),
    (lambda raw: struct.pack("<I", 99) + raw[4:], "version 99"),
    (
      lambda raw: raw.replace(b"encoder/conv2/bias\0", b"encoder/conv9/bias\0"),
      "conv2/bias",
    ),
  ],
)
def test_damaged_weights_are_one_line(variables, tmp_path, change, message):
  path = tmp_path / "model.bin"
  write(path, variables)
  path.write_bytes(change(path.read_bytes()))
  with pytest.raises(UserError, match=message) as found:
    whisper.Encoder.of_folder(tmp_path)
  assert str(path) in str(found.value)


def test_a_folder_without_weights_is_one_line(tmp_path):
  with pytest.raises(UserError, match="neither model.bin nor model.safetensors"):
    whisper.Encoder.of_folder(tmp_path)


def test_log_mel_is_whispers(encoder):
  """Against its definition, one frame by hand: reflected, windowed, to base 10."""
  audio = tone(300.0, 0.3)
  found = whisper.log_mel(audio, 80)
  assert found.shape == (len(audio) // 160 + 1, 80)
  padded = np.pad(audio, (0, 160)).astype(np.float64)
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
  bank = mel.filters(80, 400, 0.0, 8000.0)

  def frame(at):
    rows = np.abs(np.arange(at * 160 - 200, at * 160 + 200))
    return np.log10(bank @ np.abs(np.fft.rfft(padded[rows] * window)) ** 2)

  top = max(frame(at).max() for at in range(28))
  for at in (0, 12):
    expected = (np.maximum(frame(at), top - 8) + 4) / 4
    np.testing.assert_allclose(found[at], expected, atol=1e-4)


def test_steps_are_means_of_five_states_and_windows_follow_each_other(
  encoder, tmp_path, monkeypatch
):
  audio = tone(200.0, 1.0)
  found = encoder.extract(Clip(wav(tmp_path / "a.wav", audio)))
  assert found.values.shape == (10, WIDTH)
  np.testing.assert_allclose(found.times[-1], [0.9, 1.0])
  heard = Clip(tmp_path / "a.wav").audio
  states = encoder.states(whisper.log_mel(heard, BANDS)[:100])
  np.testing.assert_allclose(found.values[3], states[15:20].mean(axis=0), atol=1e-6)
  monkeypatch.setattr(whisper, "_WINDOW", RATE // 2)
  halves = encoder.extract(Clip(tmp_path / "a.wav")).values
  first = encoder.states(whisper.log_mel(heard[: RATE // 2], BANDS)[:50])
  np.testing.assert_allclose(halves[0], first[:5].mean(axis=0), atol=1e-6)
  assert halves.shape == found.values.shape
