"""How much memory padded arrays may take, asked before they are made.

One sample that is far longer than all others, as a broken transcript is, would make
every other as long: a file of megabytes becomes an array of terabytes.
"""

import os
import re
from pathlib import Path

from msa_jax.errors import UserError

# Padded arrays may be this many times their content, and as large as this anyway. Real
# corpora are at some ten times: 45 of 500 frames on average.
FACTOR = 64
FLOOR = 2**26
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB", re.MULTILINE)


def available() -> int:
  """Bytes of memory that this machine has to give, about."""
  try:
    found = _AVAILABLE.search(Path("/proc/meminfo").read_text())
  except OSError:
    found = None
  if found:
    return int(found[1]) * 1024
  try:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  except (AttributeError, ValueError, OSError):
    return 2**63


def amount(size: int) -> str:
  """Bytes for people, e.g. `3.2 GB`."""
  value, unit = float(size), "B"
  for unit in ("B", "kB", "MB", "GB", "TB"):
    if value < 1000 or unit == "TB":
      break
    value /= 1000
  return f"{value:.3g} {unit}"


def check(what: str, needed: int, content: int, culprit: str = "") -> None:
  """Checks that an array is not far larger than what is in it.

  Args:
    what: the array, for the message.
    needed: its bytes.
    content: bytes of what is in it, each piece counted once.
    culprit: what makes it so large.

  Raises:
    UserError: it is too large for its content, or for this machine.
  """
  why = f"; {culprit}" if culprit else ""
  if needed > max(FLOOR, FACTOR * content):
    raise UserError(
      f"{what} would take {amount(needed)} for {amount(content)} of content{why}"
    )
  if needed > FLOOR and needed > (free := available()):
    raise UserError(
      f"{what} would take {amount(needed)}; this machine has {amount(free)} to"
      f" give{why}"
    )
