"""Files that want all memory, all time or the interpreter, and a place to read them in.

`python tests/support/hostile.py FOLDER` writes every file, reads each in a process of
its own with two gibibytes of address space and ten seconds, and prints what came of it.
"""

import json
import os
import pickle
import resource
import signal
import struct
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

MEMORY, SECONDS = 2**31, 10
TORCH = b"ctorch._utils\n_rebuild_tensor_v2\n"
DTYPE = b"cnumpy\ndtype\nX\x02\x00\x00\x00U1\x89\x88\x87R"


def _utf8(text):
  return b"X" + struct.pack("<I", len(text)) + text.encode()


def _mmsa(**fields):
  return pickle.dumps({"predict": fields})


def _bytearray_changed():
  """A string of which the characters are changed after they were looked at."""
  start = b"\x80\x05\x96" + struct.pack("<Q", 4) + b"a\0\0\0\x94"
  call = b"cnumpy._core.numeric\n_frombuffer\n(h\x00" + DTYPE + b"K\x01\x85X\x01\0\0\0C"
  change = b"h\x00(K\x00K\xffK\x01K\xffK\x02K\xffK\x03K\xffu0"
  return start + call + b"tR" + change + b"."


def _frame_crossed():
  """The unpickler drops what is left of a frame that an argument crosses, and reads a
  high place of the memo where a string seems to be."""
  tail = b"Nr\xff\xff\xff\x1f."
  return b"\x80\x04\x95" + struct.pack("<Q", 3) + b"N0C" + bytes([len(tail)]) + tail


def _encoded_again_and_again():
  text = b"\x80\x02" + _utf8("x" * 2**20) + b"q\x00]"
  return text + b"c_codecs\nencode\nh\x00X\x06\0\0\0latin1\x86Ra" * 20_000 + b"."


def pickles():
  """Name -> content."""
  zeros = np.zeros((1000, 250), np.float32)
  doubled = [0.0]
  for _ in range(30):
    doubled = [doubled, doubled]
  long = [np.ones((1, 5), np.float32)] * 5000 + [np.ones((10**6, 5), np.float32)]
  said = ["word"] * 5000 + ["x" * 10**7]
  features = np.zeros((5001, 1, 2), np.float32)
  return {
    "high_memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "deep_key": b"\x80\x02})" + b"\x85" * 10**6 + b"Ns.",
    "wide_key": b"\x80\x02})" + b"2\x86" * 60 + b"Ns.",
    "deep_set": b"\x80\x04\x8f()" + b"\x85" * 10**6 + b"\x90.",
    "long_string": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.",
    "long_frame": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",
    "bytearray": _bytearray_changed(),
    "frame": _frame_crossed(),
    "encode": _encoded_again_and_again(),
    "shared_array": _mmsa(text=[zeros] * 100_000),
    "doubled": _mmsa(text=doubled),
    "no_cells": _mmsa(text=np.zeros((10**9, 0, 5), np.float32)),
    "no_cells_mult": _mmsa(text=np.zeros((10**9, 0, 5), np.float32), labels=[1.0]),
    "long_sample": _mmsa(text=long),
    "long_transcript": _mmsa(text=features, raw_text=said),
    "long_id": _mmsa(text=features, id=said),
    "long_label": _mmsa(text=features, regression_labels=doubled),
  }


def _npy(shape, code="<f4"):
  header = f"{{'descr': '{code}', 'fortran_order': False, 'shape': {shape}, }}"
  header = header.ljust(117) + "\n"
  return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def _zip(path, members, method=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, "w", method) as archive:
    for name, content in members:
      archive.writestr(name, content)


def _torch(path, *tensors):
  """Tensors of (offset, shape, strides) in one storage of a mebibyte."""
  storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
  storage += b"J" + struct.pack("<i", 2**18) + b"tQ"
  entries = b""
  for number, place in enumerate(tensors):
    rest = b"".join(pickle.dumps(value, 2)[2:-1] for value in place)
    entries += _utf8(f"w{number}") + TORCH + b"(" + storage + rest + b"\x89NtR"
  stream = b"\x80\x02}(" + entries + b"u."
  _zip(path, [("a/data.pkl", stream), ("a/data/0", bytes(2**20))])


def _safetensors(path, entries, content=b""):
  header = json.dumps(entries).encode()
  path.write_bytes(struct.pack("<Q", len(header)) + header + content)


def write(folder):
  """Writes all of them; returns name -> path."""
  files = {}
  for name, content in pickles().items():
    files[f"{name}.pkl"] = content
  files["tall.npy"] = _npy((10**12,))
  files["tall.csv"] = b"text,audio_path\nhello,tall.npy\n"
  files["header.safetensors"] = struct.pack("<Q", 2**62) + b"{}"
  files["nested.safetensors"] = struct.pack("<Q", 10**6) + b"[" * 10**6
  for name, content in files.items():
    (folder / name).write_bytes(content)
  made = [folder / name for name in files if name != "tall.npy"]

  def place(name):
    made.append(folder / name)
    return made[-1]

  _zip(place("tall.npz"), [("text.npy", _npy((10**10, 1, 1)))])
  _zip(place("empty_strings.npz"), [("text.npy", _npy((10**12,), "<U0"))])
  packed = [("text.npy", _npy((2**18, 1, 400)) + bytes(1600 * 2**18))]
  _zip(place("bomb.npz"), packed, zipfile.ZIP_DEFLATED)
  tasks = np.array("[" * 10**6)
  np.savez(place("nested.npz"), **{"train/text": np.ones((2, 1, 1)), "tasks": tasks})
  members = [("text.npy", _npy((4,)) + bytes(16)), ("audio.npy", _npy((4,)))]
  _zip(place("overlap.npz"), members)
  content = bytearray(made[-1].read_bytes())
  second = content.rindex(b"PK\x01\x02")
  content[second + 42 : second + 46] = bytes(4)  # at the place of the first
  made[-1].write_bytes(content)
  _torch(place("overlap.bin"), *[(n, (2**17,), (1,)) for n in range(2000)])
  _torch(place("expanded.bin"), (0, (2**9, 2**9), (0, 1)))
  whole = {"dtype": "F32", "shape": [2**18], "data_offsets": [0, 2**20]}
  entries = {f"w{n}": whole for n in range(5000)}
  _safetensors(place("overlap.safetensors"), entries, bytes(2**20))
  os.mkfifo(place("pipe.pkl"))
  place("endless.pkl").symlink_to("/dev/zero")
  config = {"model_type": "bert", "num_hidden_layers": 10**9}
  config |= dict.fromkeys(("vocab_size", "max_position_embeddings"), 8)
  config |= dict.fromkeys(("type_vocab_size", "num_attention_heads"), 2)
  config |= dict.fromkeys(("hidden_size", "intermediate_size"), 4)
  place("layers").mkdir()
  (folder / "layers" / "config.json").write_text(json.dumps(config))
  (folder / "layers" / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
  return made


def read(path):
  """Reads a file by what its name says it is."""
  from msa_jax.data.readers import read_lenient
  from msa_jax.safe_io.torch_pickles import load_torch
  from msa_jax.text import weights

  if path.suffix == ".bin":
    return load_torch(path)
  if path.suffix == ".safetensors":
    return weights._safetensors(path)
  if path.is_dir():
    return weights.load(str(path))
  return read_lenient(path, bare_text=True)


def outcome(path):
  """What reading a file in a limited process comes to."""
  from msa_jax.errors import UserError

  start = time.monotonic()
  reader, writer = os.pipe()
  process = os.fork()
  if not process:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.alarm(SECONDS)
    try:
      read(path)
      line = "success"
    except UserError as error:
      line = f"UserError {error}"
    except BaseException as error:  # noqa: BLE001  Reported as what it is.
      line = f"{type(error).__name__} {error}"
    os.write(writer, line.encode()[:4000])
    os._exit(0)
  os.close(writer)
  with open(reader, "rb") as stream:
    line = stream.read().decode()
  status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
  return {
    "line": line or f"ended with {status}",
    "seconds": time.monotonic() - start,
  }


if __name__ == "__main__":
  import msa_jax.data.readers  # noqa: F401  Before the limits.
  import msa_jax.text.weights  # noqa: F401

  print(json.dumps({p.name: outcome(p) for p in write(Path(sys.argv[1]))}))
