"""Which extractors make a corpus: chosen by name, stored with it, built again."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from msa_jax.clips import extractor
from msa_jax.clips.extractor import About, Extractor
from msa_jax.clips.words import Word
from msa_jax.errors import UserError
from msa_jax.typing import modality_order

NONE = "none"
AUTO = "auto"  # what is installed


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What is made of clips; each a name, or `name:argument`, or `none`.

  Attributes:
    extractors: modality -> name of its extractor.
    speech: what writes down what is said in clips without a transcript.
    times: when the words of a transcript without times are said: `spread`, in
      proportion to their letters over the clip, or an aligner.
    max_seconds: longer clips are refused.
  """

  extractors: Mapping[str, str]
  speech: str = NONE
  times: str = "spread"
  max_seconds: float = 1800.0


class Recogniser:
  """What turns speech into words with times; see `speech`."""

  about: About

  def words(self, audio: Any) -> list[Word]:
    """Words of sound [s] at `decode.AUDIO_RATE`.

    Raises:
      UserError: it fails.
    """
    raise NotImplementedError


class Aligner:
  """What finds the times of given words; see `alignment`."""

  about: About

  def align(self, words: list[Word], audio: Any) -> list[Word]:
    """The same words with times.

    Raises:
      UserError: it fails.
    """
    raise NotImplementedError


def _sound(argument: str) -> Extractor:
  from msa_jax.clips.sound import Sound

  _refuse_argument("sound", argument)
  return Sound()


def _encoder(argument: str) -> Extractor:
  from msa_jax.clips.tokens import TokenStates  # needs JAX

  return TokenStates(argument)


def _whisper(argument: str) -> Extractor:
  from msa_jax.clips.whisper import Encoder  # needs JAX

  return Encoder(argument)


def _egemaps(argument: str) -> Extractor:
  from msa_jax.clips.opensmile_lld import EGeMAPS

  _refuse_argument("egemaps", argument)
  return EGeMAPS()


def _faces(argument: str) -> Extractor:
  from msa_jax.clips import faces

  return faces.of_packages(argument)


def _speech(argument: str) -> "Recogniser":
  from msa_jax.clips.speech import Whisper

  return Whisper(argument)


def _sphinx(argument: str) -> "Aligner":
  from msa_jax.clips.alignment import Sphinx

  _refuse_argument("sphinx", argument)
  return Sphinx()


def _refuse_argument(name: str, argument: str) -> None:
  if argument:
    raise UserError(f"{name}:{argument}: {name} takes no argument")


Factory = Callable[[str], Any]
# Modality, or part of the recipe -> name -> what makes it of its argument.
FACTORIES: dict[str, dict[str, Factory]] = {
  "text": {"encoder": _encoder},
  "audio": {"sound": _sound, "whisper": _whisper, "egemaps": _egemaps},
  "vision": {"faces": _faces},
  "speech": {"whisper": _speech},
  "times": {"sphinx": _sphinx},
}
# What `auto` tries, in this order, and what a clip has without any of them.
_AUTO = {
  "text": ["encoder"],
  "audio": ["sound"],
  "vision": ["faces"],
  "speech": ["whisper"],
}


def register(part: str, name: str, factory: Factory) -> None:
  """Adds an extractor of one's own.

  Args:
    part: the modality that it makes features of, or `speech` or `times`.
    name: by which a recipe names it.
    factory: makes it of what follows `name:` in the recipe, or of "".

  Raises:
    UserError: a name that is taken, or that a recipe cannot hold.
  """
  known = FACTORIES.setdefault(part, {})
  if name in (*known, NONE, AUTO) or ":" in name or not name:
    raise UserError(f"{part} has an extractor {name!r}, or the name cannot be used")
  known[name] = factory


class Toolbox(NamedTuple):
  """Extractors, loaded.

  Attributes:
    recipe: what they were made of, without `auto`.
    extractors: modality -> extractor, in the order of modalities.
    speech: recogniser, or None.
    aligner: of words, or None.
    left_out: what `auto` did not find, one line each.
  """

  recipe: Recipe
  extractors: Mapping[str, Extractor]
  speech: Recogniser | None = None
  aligner: Aligner | None = None
  left_out: tuple[str, ...] = ()

  def about(self) -> dict[str, Any]:
    """What the features depend on, for `Corpus.notes` and for comparison; JSON."""
    tools: dict[str, Any] = {**self.extractors}
    tools |= {"speech": self.speech} if self.speech else {}
    tools |= {"times": self.aligner} if self.aligner else {}
    found = {
      "recipe": dataclasses.asdict(self.recipe),
      "extractors": {
        name: dataclasses.asdict(tool.about) for name, tool in tools.items()
      },
      "decoder": extractor.versions("av"),
    }
    return json.loads(json.dumps(found))


def build(recipe: Recipe) -> Toolbox:
  """Loads the extractors of a recipe.

  Raises:
    UserError: an unknown name, or something that is not installed; the message has the
      command that installs it.
  """
  left_out: list[str] = []
  made: dict[str, Any] = {}
  names: dict[str, str] = {}
  wanted = {**recipe.extractors, "speech": recipe.speech}
  if recipe.times != "spread":
    wanted["times"] = recipe.times
  for part, asked in wanted.items():
    names[part], made[part] = _made(part, asked, left_out)
  extractors = {
    modality: made[modality]
    for modality in modality_order(recipe.extractors)
    if made[modality] is not None
  }
  if not extractors:
    raise UserError("no extractor is left that makes features of clips")
  resolved = dataclasses.replace(
    recipe,
    extractors={modality: names[modality] for modality in extractors},
    speech=names["speech"],
  )
  return Toolbox(
    resolved, extractors, made["speech"], made.get("times"), tuple(left_out)
  )


def _made(part: str, asked: str, left_out: list[str]) -> tuple[str, Any]:
  """The name of what makes a part, and itself; None of `none`."""
  if asked == NONE:
    return NONE, None
  if asked != AUTO:
    name, _, argument = asked.partition(":")
    known = FACTORIES.get(part, {})
    if name not in known:
      choices = ", ".join([*known, NONE])
      raise UserError(f"{part}={asked!r}: no such extractor; choose one of {choices}")
    return asked, known[name](argument)
  for name in _AUTO[part]:
    try:
      return name, FACTORIES[part][name]("")
    except UserError as error:
      left_out.append(f"{part}: {error}")
  return NONE, None


def of_notes(stored: Mapping[str, Any]) -> Recipe:
  """The recipe in the `about` of a toolbox.

  Raises:
    UserError: it is none.
  """
  try:
    return Recipe(**stored["recipe"])
  except (KeyError, TypeError) as error:
    raise UserError(f"the run's clips have no readable recipe ({error!r})") from None


def check_same(stored: Mapping[str, Any], built: Toolbox, allow: bool) -> list[str]:
  """Compares the extractors of a run's corpus with those of this machine.

  Args:
    stored: `about` of those that made the corpus.
    built: of its recipe, here.
    allow: whether others will do.

  Returns:
    What differs, one line each; the decoder is not compared.

  Raises:
    UserError: something differs and is not allowed to.
  """
  ours, differences = built.about()["extractors"], []
  for name, theirs in stored.get("extractors", {}).items():
    here = ours.get(name, {})
    for field in (
      "name",
      "version",
      "width",
      "rate",
      "settings",
      "weights",
      "packages",
    ):
      if theirs.get(field) != here.get(field):
        differences.append(_difference(name, field, theirs, here))
  if differences and not allow:
    raise UserError(
      f"the run's features are of another extractor: {'; '.join(differences)}."
      " --allow-other-extractor takes it all the same."
    )
  return differences


def _difference(part: str, field: str, theirs: Any, here: Any) -> str:
  then, now = theirs.get(field), here.get(field)
  if isinstance(then, dict) and isinstance(now, dict):
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    pairs = [
      f"{key} {_short(then.get(key))}, here {_short(now.get(key))}" for key in keys
    ]
    wanted = [f"{key}=={then[key]}" for key in keys if key in then]
    hint = f" (pip install {' '.join(wanted)})" if field == "packages" else ""
    return f"{part} {theirs.get('name')}: {'; '.join(pairs)}{hint}"
  return f"{part} {theirs.get('name')}: {field} {then!r}, here {now!r}"


def _short(value: Any) -> str:
  text = str(value)
  return text[:12] if len(text) == 64 else text[:40]
