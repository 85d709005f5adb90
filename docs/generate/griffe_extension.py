"""What mkdocstrings does not see by itself: docstrings of ours, fields as arguments."""

import griffe

from docs.generate import docstrings

_BASES = ("nn.Module", "LateFusion", "NamedTuple")
_DECORATOR = "flax.struct.dataclass"


class Extension(griffe.Extension):
  """Makes docstrings Markdown, and the fields of modules and structs a signature."""

  def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
    """Rewrites the docstring, before it is parsed."""
    del kwargs
    if obj.docstring is not None:
      obj.docstring.value = docstrings.markdown(obj.docstring.value)

  def on_class(self, *, cls: griffe.Class, **kwargs) -> None:
    """Gives a class of fields the arguments that its `__init__` has."""
    del kwargs
    decorators = [str(each.value) for each in cls.decorators]
    is_made = any(str(base) in _BASES for base in cls.bases) or _DECORATOR in decorators
    if not is_made or "__init__" in cls.members:
      return
    fields = [each for each in cls.attributes.values() if _is_field(each)]
    parameters = [
      griffe.Parameter(
        each.name,
        annotation=each.annotation,
        kind=griffe.ParameterKind.positional_or_keyword,
        default=each.value,
      )
      for each in fields
    ]
    start = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
    made = griffe.Parameters(start, *parameters)
    cls.set_member("__init__", griffe.Function("__init__", parameters=made, parent=cls))


def _is_field(attribute: griffe.Attribute) -> bool:
  named = attribute.annotation is not None and not attribute.name.startswith("_")
  return named and "instance-attribute" in attribute.labels
