"""Folders that tests read."""

import pathlib

TESTS = pathlib.Path(__file__).parent.parent
ROOT = TESTS.parent
SUPPORT = TESTS / "support"
REFERENCE = TESTS / "reference"
