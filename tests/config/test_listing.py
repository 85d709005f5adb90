"""`msa-jax configs`: every option of every shipped config is told of."""

import pytest

from msa_jax.config import described, files, listing
from msa_jax.config.experiment import experiment, flatten, to_tree


def test_every_config_is_listed_with_its_variants():
  lines = list(listing.systems())
  named = {line.split()[0] for line in lines if not line.startswith(" ")}
  assert named == set(files.shipped())
  assert any("mosi, mosei" in line for line in lines)


@pytest.mark.parametrize("name", sorted(files.shipped()))
def test_every_option_has_its_value_and_a_meaning(name):
  lines = list(listing.options(name))
  tree = to_tree(experiment(files.get_config(name)))
  keys = [
    key
    for section, values in tree.items()
    if isinstance(values, dict)
    for key in flatten(values, f"{section}.")
  ]
  for key in keys:
    place = next(
      i for i, line in enumerate(lines) if line.startswith(f"  --config.{key}=")
    )
    told = place + 1 < len(lines) and lines[place + 1].startswith("      ")
    # Weights of losses are told of by the system, not by fields.
    assert told or key.startswith("loss."), key


def test_a_variant_shows_its_values(capsys):
  assert listing.main(["lf_dnn:mosi"]) == 0
  assert "--config.optim.batch_size=128  (int)" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["hgme"], ["hgem", "derl"], ["--all"]])
def test_bad_input_is_one_line_and_exit_code_2(arguments, capsys):
  with pytest.raises(SystemExit) as stopped:
    listing.main(arguments)
  said = capsys.readouterr().err
  assert stopped.value.code == 2 and said.startswith("error: ")
  assert said.count("\n") == 1


def test_attributes_are_read_off_a_docstring():
  text = """Of a thing.

  Attributes:
    one: first, which goes on
      below.
    two, three: both; a colon: within.

  Returns:
    four: no attribute.
  """
  assert described.attributes(text) == {
    "one": "first, which goes on below.",
    "two": "both; a colon: within.",
    "three": "both; a colon: within.",
  }
