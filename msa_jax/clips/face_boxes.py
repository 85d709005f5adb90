"""Faces in a picture, from what BlazeFace says of it.

V. Bazarevsky et al., "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs",
CVPR Workshop on Computer Vision for AR and VR, 2019: an anchor per cell and size, and a
weighted mean of boxes that overlap in place of suppression.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped, UInt8

INPUT = 128  # pixels of the square that the detector sees
_STRIDES = (8, 16, 16, 16)
_LEAST_SCORE = 0.5
_OVERLAP = 0.3
_LOGIT_LIMIT = 80.0
RIGHT_EYE, LEFT_EYE = 0, 1  # rows of `Face.points`, as the picture shows them


class Face(NamedTuple):
  """A face, in pixels of the picture.

  Attributes:
    box: left, top, right, bottom.
    points: [6 2] x and y of eyes, nose, mouth and ears.
    score: in (0, 1).
  """

  box: Float[np.ndarray, " 4"]
  points: Float[np.ndarray, "6 2"]
  score: float

  @property
  def area(self) -> float:
    """Of the box."""
    left, top, right, bottom = self.box.tolist()
    return (right - left) * (bottom - top)


def sample(
  pixels: UInt8[np.ndarray, "h w 3"],
  centre: Float[np.ndarray, " 2"],
  side: float,
  size: int,
  angle: float = 0.0,
) -> Float[np.ndarray, "size size 3"]:
  """A square of a picture, turned and scaled; black beyond the edges.

  Args:
    pixels: of the picture.
    centre: x and y of the square.
    side: its length in pixels of the picture.
    size: pixels to make of it; bilinear, after averages of whole blocks where it
      becomes smaller by two or more.
    angle: by which the square is turned, in radians.
  """
  reach = side * 0.71 + 2.0  # of a turned square's corners
  left, top = np.maximum(np.floor(centre - reach), 0).astype(int)
  right, bottom = np.maximum(np.ceil(centre + reach), 0).astype(int)
  image = pixels[top:bottom, left:right]
  if not image.size:
    return np.zeros((size, size, 3), np.float32)
  block = max(1, int(side / size))
  image = _averaged(image, block) if block > 1 else image
  steps = ((np.arange(size) + 0.5) / size - 0.5) * side
  across, down = np.meshgrid(steps, steps)
  cos, sin = np.cos(angle), np.sin(angle)
  x = (centre[0] - left + cos * across - sin * down) / block - 0.5
  y = (centre[1] - top + sin * across + cos * down) / block - 0.5
  return _bilinear(image, x.ravel(), y.ravel()).reshape(size, size, 3)


def _averaged(
  image: UInt8[np.ndarray, "h w 3"], block: int
) -> Float[np.ndarray, "h2 w2 3"]:
  """Means of whole blocks; what is smaller than one is one."""
  height, width = (max(1, length // block) for length in image.shape[:2])
  short = [max(0, block - length) for length in image.shape[:2]]
  if any(short):
    image = np.pad(image, ((0, short[0]), (0, short[1]), (0, 0)), "edge")
  image = image[: height * block, : width * block]
  total = np.zeros((height, width, 3), np.float32)
  for row in range(block):
    for column in range(block):
      total += image[row::block, column::block]
  return total / block**2


def _bilinear(
  image: Shaped[np.ndarray, "h w 3"],
  x: Float[np.ndarray, " n"],
  y: Float[np.ndarray, " n"],
) -> Float[np.ndarray, "n 3"]:
  height, width = image.shape[:2]
  flat = image.reshape(-1, 3)
  first, upper = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
  right, low = (x - first).astype(np.float32), (y - upper).astype(np.float32)
  made = np.zeros((len(x), 3), np.float32)
  for dy, down in ((0, 1 - low), (1, low)):
    row = upper + dy
    down = down * ((row >= 0) & (row < height))
    start = np.clip(row, 0, height - 1) * width
    for dx, across in ((0, 1 - right), (1, right)):
      column = first + dx
      weight = down * across * ((column >= 0) & (column < width))
      place = start + np.clip(column, 0, width - 1)
      made += weight[:, None] * flat.take(place, axis=0)
  return made


def letterbox(
  pixels: UInt8[np.ndarray, "h w 3"],
) -> tuple[Float[np.ndarray, "1 128 128 3"], float, Float[np.ndarray, " 2"]]:
  """The whole picture in the middle of a square, in [-1, 1].

  Returns:
    What the detector sees; side of the square in pixels; x and y of its corner.
  """
  height, width = pixels.shape[:2]
  side, centre = float(max(height, width)), np.array([width / 2, height / 2])
  seen = sample(pixels, centre, side, INPUT) / 127.5 - 1.0
  return seen[None].astype(np.float32), side, centre - side / 2


@functools.cache
def anchors() -> Float[np.ndarray, "896 2"]:
  """Centres of the cells in [0, 1]: two for each cell of each layer."""
  made = []
  for stride in dict.fromkeys(_STRIDES):  # layers of one stride share their cells
    cells = INPUT // stride
    places = (np.arange(cells) + 0.5) / cells
    x, y = np.meshgrid(places, places)
    grid = np.stack([x.ravel(), y.ravel()], axis=1)
    made.append(np.repeat(grid, 2 * _STRIDES.count(stride), axis=0))
  return np.concatenate(made).astype(np.float32)


def decode(
  raw: Float[np.ndarray, "896 16"],
  logits: Float[np.ndarray, " 896"],
  side: float,
  corner: Float[np.ndarray, " 2"],
) -> list[Face]:
  """Faces of what the detector says, the most certain first.

  Args:
    raw: of each anchor: centre, width and height, and six points, in its pixels.
    logits: of each anchor.
    side, corner: of `letterbox`.
  """
  scores = 1.0 / (1.0 + np.exp(-np.clip(logits, -_LOGIT_LIMIT, _LOGIT_LIMIT)))
  chosen = np.flatnonzero(scores > _LEAST_SCORE)
  values = raw[chosen].reshape(-1, 8, 2) / INPUT
  values[:, 0] += anchors()[chosen]
  values[:, 2:] += anchors()[chosen][:, None]
  half = values[:, 1] / 2
  found = np.concatenate(
    [(values[:, 0] - half)[:, None], (values[:, 0] + half)[:, None], values[:, 2:]],
    axis=1,
  )
  found = found * side + corner  # [n 8 2]
  order = np.argsort(-scores[chosen], kind="stable")
  rows, scores = found[order], scores[chosen][order]
  faces = []
  while len(rows):
    same = overlap(rows[0, :2].ravel(), rows[:, :2].reshape(-1, 4)) > _OVERLAP
    same[0] = True
    weights = scores[same] / scores[same].sum()
    mean = np.tensordot(weights, rows[same], axes=1)
    if (mean[1] > mean[0]).all():
      faces.append(Face(mean[:2].ravel(), mean[2:], float(scores[0])))
    rows, scores = rows[~same], scores[~same]
  return faces


def overlap(
  one: Float[np.ndarray, " 4"], others: Float[np.ndarray, "n 4"]
) -> Float[np.ndarray, " n"]:
  """Intersection of boxes over their union."""
  low = np.maximum(one[:2], others[:, :2])
  high = np.minimum(one[2:], others[:, 2:])
  both = np.prod(np.maximum(high - low, 0.0), axis=1)
  area = np.prod(np.maximum(one[2:] - one[:2], 0.0))
  areas = np.prod(np.maximum(others[:, 2:] - others[:, :2], 0.0), axis=1)
  return both / np.maximum(area + areas - both, 1e-9)


def choose(faces: list[Face], before: Face | None) -> Face | None:
  """The face to follow: that of the picture before, until another is half as large
  again; else the largest."""
  if not faces:
    return None
  largest = max(faces, key=lambda face: face.area)
  if before is None:
    return largest
  shared = overlap(before.box, np.stack([face.box for face in faces]))
  same = faces[int(shared.argmax())]
  stays = shared.max() > _OVERLAP and largest.area < 1.5 * same.area
  return same if stays else largest
