"""Where the words of a transcript are; needs no tokenizer."""

import re

_CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# What forced aligners number: what spaces separate; of Chinese, single characters.
_WORD = re.compile(f"[{_CJK}]|[^\\s{_CJK}]+")


def word_spans(text: str) -> list[tuple[int, int]]:
  """First character of every word and one past its last.

  Words are what spaces separate, in Chinese single characters.
  """
  return [match.span() for match in _WORD.finditer(text)]
