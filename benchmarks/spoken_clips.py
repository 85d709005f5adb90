"""`python -m benchmarks.spoken_clips FOLDER`: 200 clips labelled by what is in them.

A synthetic voice (espeak-ng, to be installed) says a sentence with a good or a bad
word, at a drawn rate and pitch, beside a portrait (scikit-image's, to be installed) at
a drawn place. The sentiment is .75 (rate + pitch + place + word), of which text has the
word, audio the rate and the pitch, vision the place: each modality has what no other
has, so that what a missing one costs is known beforehand.
"""

import csv
import pathlib
import random
import subprocess
import sys
import tempfile

import av
import numpy as np

from msa_jax.clips.decode import AUDIO_RATE, Clip

COUNT = 200
PICTURES = 5  # a second
_WHO = (
  *("my friend", "the teacher", "our neighbour", "a student", "the old man"),
  "her sister",
)
_DID = ("walked to", "talked about", "looked at", "went past", "thought of")
_WHAT = (
  *("the garden", "a small house", "the river", "the open window", "a long road"),
  "the market",
)
_WORDS = {
  1: ("wonderful", "lovely", "happy", "great"),
  -1: ("terrible", "awful", "sad", "horrible"),
}


def main(folder: pathlib.Path) -> None:
  """Writes `CLIPS/*.mp4` and `labels.csv`."""
  from skimage import data

  portrait = data.astronaut()[:256, 96:352]
  draw, rows = random.Random(0), []
  (folder / "CLIPS").mkdir(parents=True, exist_ok=True)
  for number in range(COUNT):
    rate, pitch, place = (draw.uniform(-1, 1) for _ in range(3))
    word = draw.choice((-1, 1))
    parts = [draw.choice(each) for each in (_WHO, _DID, _WHAT, _WORDS[word])]
    text = f"{parts[0]} {parts[1]} {parts[2]} and it was {parts[3]}"
    picture = np.full((256, 512, 3), 90, np.uint8)
    left = int(128 + 100 * place)
    picture[:, left : left + 256] = portrait
    name = f"{number:03}.mp4"
    film(folder / "CLIPS" / name, picture, spoken(text, rate, pitch))
    rows.append((name, text, round(0.75 * (rate + pitch + place + word), 4)))
  with (folder / "labels.csv").open("w", newline="") as stream:
    csv.writer(stream).writerows([("path", "text", "sentiment"), *rows])


def spoken(text: str, rate: float, pitch: float) -> np.ndarray:
  """Sound [s] of a sentence; rate and pitch in [-1, 1]."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "said.wav"
    how = ["-s", str(int(170 + 60 * rate)), "-p", str(int(50 + 40 * pitch))]
    subprocess.run(["espeak-ng", *how, "-w", str(path), text], check=True)
    audio = Clip(path).audio
  assert audio is not None
  return audio


def film(path: pathlib.Path, picture: np.ndarray, audio: np.ndarray) -> None:
  """Writes a still picture [h w 3] as long as the sound."""
  with av.open(str(path), "w") as container:
    video = container.add_stream("mpeg4", rate=PICTURES)
    video.height, video.width = picture.shape[:2]
    video.pix_fmt = "yuv420p"
    sound = container.add_stream("aac", rate=AUDIO_RATE)
    sound.layout = "mono"
    for _ in range(max(5, int(len(audio) / AUDIO_RATE * PICTURES))):
      container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(video.encode(None))
    frame = av.AudioFrame.from_ndarray(audio[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts = AUDIO_RATE, 0
    container.mux([*sound.encode(frame), *sound.encode(None)])


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
