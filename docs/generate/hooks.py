"""Hooks of mkdocs: pages made from the code are added to those written by hand."""

import pathlib
import re
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# The pages tell of this checkout, whatever version is installed.
sys.path.insert(0, str(_ROOT))

from docs.generate import api, options, systems  # noqa: E402
from msa_jax.models import SYSTEMS  # noqa: E402


def _from_root(name: str) -> str:
  """A page of the repository's root, with links as they are seen from the site."""
  text = (_ROOT / name).read_text()
  text = re.sub(r"\]\(docs/([^)]+)\)", r"](\1)", text)
  text = text.replace('src="docs/', 'src="')
  return re.sub(r"\]\((CHANGELOG|CONTRIBUTING)\.md\)", _lower, text)


def _lower(found: re.Match) -> str:
  return found.group().lower()


def pages() -> dict[str, str]:
  """Path within the site's sources -> Markdown."""
  return {
    "index.md": _from_root("README.md"),
    "changelog.md": _from_root("CHANGELOG.md"),
    "contributing.md": _from_root("CONTRIBUTING.md"),
    "options.md": options.page(),
    "systems/index.md": systems.index(),
    **{f"systems/{key}.md": systems.page(key) for key in SYSTEMS},
    **{f"api/{each.key}.md": api.page(each) for each in api.PAGES},
  }


def on_config(config: MkDocsConfig) -> None:
  """Fills the parts of the navigation that the code decides."""
  sys.path.insert(0, str(_ROOT))  # mkdocs takes it away again after loading this file
  listed = {
    "Systems": [
      "systems/index.md",
      *(f"systems/{key}.md" for key in SYSTEMS),
    ],
    "API": [f"api/{each.key}.md" for each in api.PAGES],
  }
  for place in config.nav or ():
    for title in place.keys() & listed.keys():
      place[title] = listed[title]


def on_files(files: Files, config: MkDocsConfig) -> None:
  """Adds the pages."""
  for path, text in pages().items():
    files.append(File.generated(config, path, content=text))
