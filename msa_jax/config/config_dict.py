"""`ml_collections.ConfigDict`, with types.

ml_collections does not annotate its items: a type checker takes `config.optim` for one
of the dozen types that a field may have, and every `config.optim.epochs` for an error.
At run time both names are the same class.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ml_collections

if TYPE_CHECKING:

  class ConfigDict(ml_collections.ConfigDict):
    def __init__(
      self, initial_dictionary: Mapping[str, Any] | ml_collections.ConfigDict = ...
    ) -> None: ...

    def __getattr__(self, attribute: str) -> Any: ...

    def __getitem__(self, key: str) -> Any: ...

    def lock(self) -> "ConfigDict": ...

else:
  ConfigDict = ml_collections.ConfigDict
