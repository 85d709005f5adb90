"""Hashes of files, which say what a run was made from."""

import hashlib
from pathlib import Path


def sha256(path: Path) -> str:
  """SHA-256 of a file, in hexadecimal, read in pieces."""
  with path.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()
