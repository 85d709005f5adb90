"""Faces: boxes by hand, squares of a picture, and an extractor of stand-in networks."""

import numpy as np
import pytest
from tiny_clips import film, gray, tone, wav

from msa_jax.clips import face_boxes, faces
from msa_jax.clips.decode import Clip
from msa_jax.clips.extraction import _checked
from msa_jax.clips.face_boxes import Face
from msa_jax.errors import UserError


def test_anchors_are_the_cells_centres_each_for_every_size():
  found = face_boxes.anchors()
  assert found.shape == (896, 2)
  np.testing.assert_allclose(found[:4] * 16, [[0.5, 0.5]] * 2 + [[1.5, 0.5]] * 2)
  np.testing.assert_allclose(found[512:518] * 8, [[0.5, 0.5]] * 6)
  np.testing.assert_allclose(found[-1] * 8, [7.5, 7.5])


def raw(anchor, centre, size):
  """Raw values of an anchor for a box in [0, 1], its points in the middle."""
  found = np.zeros((8, 2))
  found[0] = (np.array(centre) - face_boxes.anchors()[anchor]) * 128
  found[1] = np.array(size) * 128
  found[2:] = found[0]
  return found.ravel()


def test_boxes_that_overlap_become_their_weighted_mean():
  values, logits = np.zeros((896, 16)), np.full(896, -9.0)
  values[100], logits[100] = (
    raw(100, (0.5, 0.5), (0.2, 0.2)),
    0.0,
  )  # score .5: not above
  values[200], logits[200] = raw(200, (0.50, 0.5), (0.2, 0.2)), np.log(0.8 / 0.2)
  values[300], logits[300] = raw(300, (0.52, 0.5), (0.2, 0.2)), np.log(0.6 / 0.4)
  values[400], logits[400] = raw(400, (0.1, 0.9), (0.1, 0.1)), 90.0
  corner = np.array([0.0, -20.0])
  far, near = face_boxes.decode(values, logits, 100.0, corner)
  assert far.score == pytest.approx(1.0) and near.score == pytest.approx(0.8)
  np.testing.assert_allclose(far.box, [5, 65, 15, 75], atol=1e-4)
  middle = 100 * (0.8 * 0.50 + 0.6 * 0.52) / 1.4
  np.testing.assert_allclose(near.box, [middle - 10, 20, middle + 10, 40], atol=1e-4)
  np.testing.assert_allclose(near.points, [[middle, 30]] * 6, atol=1e-4)


def face(left, top, side, score=0.9):
  box = np.array([left, top, left + side, top + side], float)
  return Face(box, np.zeros((6, 2)), score)


def test_the_face_of_before_is_followed_until_another_is_much_larger():
  small, large, huge = face(0, 0, 10), face(50, 50, 12), face(50, 50, 13)
  assert face_boxes.choose([], small) is None
  assert face_boxes.choose([small, large], None) is large
  assert face_boxes.choose([small, large], face(1, 1, 10)) is small
  assert face_boxes.choose([small, huge], face(1, 1, 10)) is huge
  assert face_boxes.choose([large], face(1, 1, 10)) is large


def test_a_square_is_cut_turned_and_black_beyond_the_edges():
  pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
  same = face_boxes.sample(pixels, np.array([4.0, 3.0]), 4.0, 4)
  np.testing.assert_allclose(same, pixels[1:5, 2:6], atol=1e-4)
  # The square's axes turn clockwise with the angle, its first row then runs down.
  turned = face_boxes.sample(pixels, np.array([4.0, 3.0]), 4.0, 4, np.pi / 2)
  np.testing.assert_allclose(turned, np.rot90(pixels[1:5, 2:6]), atol=1e-3)
  beyond = face_boxes.sample(pixels, np.array([0.0, 3.0]), 4.0, 4)
  np.testing.assert_allclose(beyond[:, 2:], pixels[1:5, :2], atol=1e-4)
  assert not beyond[:, :2].any()
  away = face_boxes.sample(pixels, np.array([-90.0, 3.0]), 4.0, 4)
  assert away.shape == (4, 4, 3) and not away.any()


def test_a_square_that_becomes_smaller_averages_blocks():
  random = np.random.default_rng(0)
  pixels = random.integers(0, 255, (64, 64, 3)).astype(np.uint8)
  small = face_boxes.sample(pixels, np.array([32.0, 32.0]), 64.0, 8)
  expected = pixels.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3))
  np.testing.assert_allclose(small, expected, atol=1e-3)


def test_a_wide_picture_is_in_the_middle_of_its_square():
  seen, side, corner = face_boxes.letterbox(np.full((64, 128, 3), 255, np.uint8))
  assert (side, corner.tolist()) == (128.0, [0.0, -32.0])
  rows = seen[0, :, 64, 0]
  assert (rows[40:88] > 0.99).all() and (rows[:24] < -0.99).all()


def test_geometry_is_in_units_of_the_eyes_and_sees_a_smile_and_a_turn():
  random = np.random.default_rng(0)
  mesh = random.normal(size=(468, 3)).astype(np.float32)
  base = faces.geometry(mesh)
  assert base.shape == (14,)
  np.testing.assert_allclose(faces.geometry(3 * mesh + 5), base, rtol=2e-3, atol=2e-3)
  smile = mesh.copy()
  smile[[61, 291], 1] -= 1.0  # corners go up
  unit = np.linalg.norm(mesh[33, :2] - mesh[263, :2])
  lift = faces._GEOMETRY.index("corner_lift")
  assert faces.geometry(smile)[lift] - base[lift] == pytest.approx(1 / unit, rel=1e-3)


def stand_ins(bright_only=True):
  """Networks that see a face of a tenth of a picture wherever it is not dark."""
  values, logits = np.zeros((1, 896, 16)), np.full((1, 896, 1), -9.0)
  values[0, 7], values[0, 600] = (
    raw(7, (0.3, 0.5), (0.2, 0.2)),
    raw(600, (0.8, 0.5), (0.1, 0.1)),
  )
  for row in (7, 600):
    points = values[0, row].reshape(8, 2)
    points[2, 0] -= 0.02 * 128  # eyes at one height
    points[3, 0] += 0.02 * 128
  logits[0, 7, 0] = logits[0, 600, 0] = 3.0
  mesh = np.random.default_rng(0).normal(size=(1, 1, 1, 1404)).astype(np.float32)

  def detector(seen):
    level = (seen[0, 64, 64].mean() + 1) * 127.5
    crowd = logits.copy()
    crowd[0, 600] = 3.0 if level > 150 else -9.0
    return values, crowd if level > 20 else np.full_like(logits, -9.0)

  def expression(square):
    assert square.shape == (1, 64, 64, 1) and np.abs(square).max() <= 1.0
    level = float(square.mean() + 1) / 2
    return (np.array([[0, 0, 0, level, 0, 0, 1 - level]], np.float32),)

  flag = np.array([[[[2.0]]]])
  return faces.Networks(detector, lambda square: (mesh, flag), expression)


@pytest.fixture
def extractor():
  return faces.Faces(stand_ins, {})


def test_pictures_without_a_face_are_lost_and_a_crowd_is_noted(extractor, tmp_path):
  pictures = [gray(5)] * 4 + [gray(100)] * 4 + [gray(200)] * 4
  found = extractor.extract(Clip(film(tmp_path / "a.mkv", pictures, rate=10)))
  assert found.values.shape == (6, len(faces.COLUMNS))
  assert found.lost.tolist() == [True, True, False, False, False, False]
  assert found.note == "several faces in 2 of 6 pictures"
  table = dict(zip(faces.COLUMNS, found.values.T, strict=True))
  # The square is as wide as the picture and higher: x is as it was, height is not.
  np.testing.assert_allclose(table["centre_x"][2:], 0.3, atol=1e-3)
  np.testing.assert_allclose(table["width"][2:], 0.2, atol=1e-3)
  np.testing.assert_allclose(table["height"][2:], 0.2 * 64 / 48, atol=1e-3)
  assert table["faces"].tolist() == [0, 0, 1, 1, 2, 2]
  np.testing.assert_allclose(table["happy"][2:], [0.39] * 2 + [0.78] * 2, atol=0.03)
  assert not found.values[:2].any()


def test_a_clip_without_a_face_or_without_pictures_has_no_vision(extractor, tmp_path):
  found = extractor.extract(Clip(film(tmp_path / "a.mkv", [gray(5)] * 4)))
  assert found.note == "no face in any of 2 pictures"
  assert len(_checked("vision", found, len(faces.COLUMNS)).values) == 0
  none = extractor.extract(Clip(wav(tmp_path / "a.wav", tone(100.0, 0.2))))
  assert len(none.values) == 0 and none.note == "no video track"


def test_networks_that_are_not_there_are_named(tmp_path):
  with pytest.raises(UserError, match="no such file|pip install"):
    faces.of_packages(str(tmp_path))
