"""Docstrings as Markdown, and what they say of each field."""

import inspect
import re

import griffe

_PARSER = {
  # A description goes on in lines as far in as the first.
  "returns_multiple_items": False,
  "warnings": False,
}
_SECTION = re.compile(r"(Args|Attributes|Examples?|Raises|Returns|Yields):\n")
_NAMES = re.compile(r"(?m)^( +)(\w+(?:, \w+)+):((?: .*)?(?:\n\1 +.*)*)")
_STARS = re.compile(r"(?m)(^ *\*+|`[^`]*`)|\*")
_TITLES = {"parameters": "Arguments"}
_SHELL = ("python -m ", "msa-jax ", "pip ")


def markdown(text: str) -> str:
  """A docstring as Markdown.

  Paragraphs that are set in, and those that begin with `>>>`, become fenced code; an
  entry of several names, `a, b: what they are`, one entry for each.
  """
  made, in_section = [], False
  for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
    lines = paragraph.splitlines()
    if _SECTION.match(paragraph):
      in_section = True
      paragraph = _NAMES.sub(_one_each, paragraph)
    elif paragraph.startswith(">>>"):
      paragraph = f"```pycon\n{paragraph}\n```"
    elif all(line.startswith("  ") for line in lines) and not in_section:
      code = inspect.cleandoc(f"\n{paragraph}")
      paragraph = f"```{_language(code)}\n{code}\n```"
    else:
      in_section = in_section and paragraph.startswith("  ")
    if not paragraph.startswith("```"):
      # Products are no emphasis; stars of arguments' names stay.
      paragraph = _STARS.sub(lambda found: found[1] or r"\*", paragraph)
    made.append(paragraph)
  return "\n\n".join(made)


def _one_each(found: re.Match) -> str:
  indent, names, rest = found.groups()
  return "\n".join(f"{indent}{name}:{rest}" for name in names.split(", "))


def _language(code: str) -> str:
  if code.startswith(_SHELL):
    return "bash"
  return "python" if re.match(r"(import|from) |\w+ = |\w+\.\w+\(", code) else "text"


def sections(text: str) -> list[griffe.DocstringSection]:
  """The parts of a docstring: text, attributes, arguments, ..."""
  return griffe.Docstring(markdown(text)).parse("google", **_PARSER)


def prose(text: str) -> str:
  """What a docstring says before and between its sections, as Markdown."""
  parts = [part.value for part in sections(text) if part.kind.value == "text"]
  return "\n\n".join(parts)


def paragraphs(text: str, start: str) -> list[str]:
  """Paragraphs that begin with a word, e.g. `Source:`, without it."""
  found = inspect.cleandoc(text).split("\n\n")
  return [
    " ".join(each.removeprefix(start).split())
    for each in found
    if each.startswith(start)
  ]


def text(docstring: str) -> str:
  """A whole docstring as Markdown: sections become lists under a bold word."""
  made = []
  for part in sections(docstring):
    kind = part.kind.value
    if kind == "text":
      made.append(part.value)
      continue
    made.append(f"**{_TITLES.get(kind, kind.capitalize())}**")
    if kind == "returns":
      made += [f"{_name(item.name)}{item.description}" for item in part.value]
      continue
    lines = []
    for item in part.value:
      name = getattr(item, "name", None) or item.annotation
      lines.append(f"- {_name(name)}{' '.join(item.description.split())}")
    made.append("\n".join(lines))
  return "\n\n".join(made)


def _name(name: str) -> str:
  return f"`{name}`: " if name else ""
