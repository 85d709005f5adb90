"""Pages made from the code: complete, and true to what the code does."""

import dataclasses
import inspect

import flax.linen as nn
import griffe
import pytest
from paths import ROOT

from docs.generate import api, docstrings, options, systems, tables
from msa_jax import layers, models
from msa_jax.config.defaults import SECTIONS
from msa_jax.config.experiment import experiment, flatten, with_options
from msa_jax.losses import task
from msa_jax.models.options import defaults

pytestmark = pytest.mark.slow


ENTRIES = {key: systems.entry(key) for key in models.SYSTEMS}


@pytest.mark.parametrize("key", ENTRIES)
def test_a_page_has_every_option_with_the_default_of_the_network(key):
  made = ENTRIES[key]
  told = [each for group in systems.groups(made) for each in group.options]
  shown = flatten({each.key: each.default for each in told})
  assert all(each.meaning for each in told)
  assert set(shown) == set(flatten(made.default.model))
  for name, value in flatten(defaults(made.network)).items():
    assert shown.get(name, value) == value
  page = systems.page(key)
  assert all(f"| `{each.key.rpartition('.')[2]}`<br>" in page for each in told)


@pytest.mark.parametrize("key", ENTRIES)
def test_what_a_variant_is_said_to_set_makes_the_variant(key):
  made = ENTRIES[key]
  page = systems.page(key)
  for variant in made.config.VARIANTS:
    meant = experiment(made.config.get_config(variant))
    assert with_options(made.default, systems.changes(made, variant)) == meant
    assert f"| `{variant}` | " in page


def test_pages_name_paper_studies_losses_and_published_figures():
  page = systems.page("hgem")
  assert page.startswith("# H-GEM\n") and "35(3):59-68" in page
  assert "msa-jax studies ablation --config=hgem --table=fusion" in page
  assert "| `route_mi` | `0.05` |" in page and "`load_balance` of Gate 1" in page
  assert "### CMU-MOSI" in page and "| 0.574 | 0.862 |" in page
  assert "| `optim.learning_rate` | `0.0003` | `0.001` |" in page
  rows = [line for line in systems.index().splitlines() if line.startswith("| [")]
  assert len(rows) == len(models.SYSTEMS)


def test_the_page_of_shared_options_has_all_of_them():
  page = options.page()
  for name, section in SECTIONS.items():
    assert f"\n## `{name}`\n" in page
    for field in dataclasses.fields(section):
      group = dataclasses.is_dataclass(getattr(section(), field.name))
      wanted = f"`{name}.{field.name}`" if group else f"| `{field.name}`<br>"
      assert wanted in page


@dataclasses.dataclass(frozen=True)
class Undocumented:
  """Options.

  Attributes:
    known: said.
  """

  known: int = 1
  silent: int = 2


def test_an_option_that_no_docstring_tells_of_stops_the_build():
  with pytest.raises(ValueError, match="Undocumented: its docstring omits silent"):
    tables.groups(Undocumented)
  (group,) = tables.groups(Undocumented, only=["known"])
  assert group.options == (tables.Option("known", "int", 1, "said."),)


def test_docstrings_become_markdown():
  said = """Of 2*d and d*2, `a*b`.

    >>> f(1)
    2

      python -m msa_jax.main --config=x

    Attributes:
      first, second: the two
        of them.
      third: *args* stay.
    """
  made = docstrings.markdown(said)
  assert made.startswith("Of 2\\*d and d\\*2, `a*b`.\n\n```pycon\n>>> f(1)\n2\n```")
  assert "```bash\npython -m msa_jax.main --config=x\n```" in made
  assert docstrings.entries(said) == {
    "first": "the two of them.",
    "second": "the two of them.",
    "third": "\\*args\\* stay.",
  }


def test_the_api_shows_public_names_alone():
  assert {"huber", "masked_average", "l1"} <= set(api.names(task))
  assert not {"_float", "jnp", "UserError"} & set(api.names(task))
  face = api.names(__import__("msa_jax"))
  assert {"train", "Predictor", "Corpus"} <= set(face)
  assert not {"models", "layers", "__version__"} & set(face)
  page = api.page(next(each for each in api.PAGES if each.key == "losses"))
  assert "## `losses.routing`" in page
  assert "::: msa_jax.losses.routing.load_balance" in page


def test_signatures_in_the_api_are_the_fields_of_the_modules():
  extension = str(ROOT / "docs" / "generate" / "griffe_extension.py")
  read = griffe.load(
    "msa_jax",
    search_paths=[ROOT],
    extensions=griffe.load_extensions(extension),
    allow_inspection=False,
  )
  compared = 0
  for name in layers.__all__:
    network = getattr(layers, name)
    if not (inspect.isclass(network) and issubclass(network, nn.Module)):
      continue
    found = read[f"{network.__module__.removeprefix('msa_jax.')}.{name}"]
    names = [f.name for f in dataclasses.fields(network)]
    names = [each for each in names if each not in ("parent", "name")]
    assert [each.name for each in found.parameters][1:] == names
    compared += 1
  assert compared > 8
