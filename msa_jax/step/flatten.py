"""Small parameters as one vector per kind, where the optimizer reads them.

An update rule is some thirty operations for every array, and a model that trains in
minutes has a hundred or two of some thousand entries: half of its step's operations
would be theirs, to be traced, compiled, loaded and started. Update rules go entry by
entry, so the numbers are those of the arrays; only the order differs in which a norm
over all of them is summed.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from msa_jax.layers import moe

_SMALL = 2**14  # Most entries of an array that is packed; larger ones cost a copy.
_PACKED, _APART, _DECAYED = "packed", "apart", "decayed"

Names = tuple[str, ...]


class Kind(NamedTuple):
  """What an optimizer needs to know of an array.

  Attributes:
    partition: name of the partition, which has a learning rate.
    decays: whether weight decay applies to it.
  """

  partition: str
  decays: bool


KindOf = Callable[[Names, Any], Kind]


def names_of(path: Sequence[Any]) -> Names:
  """Names along a path of `jax.tree_util`."""
  return tuple(str(getattr(key, "key", key)) for key in path)


def packed(
  kind_of: KindOf,
  make: Callable[[KindOf], optax.GradientTransformation],
) -> optax.GradientTransformation:
  """A transformation that sees the small arrays of a tree as one vector per kind.

  Banks of experts stay apart, whatever their size: devices may hold some experts each.

  Args:
    kind_of: (path, leaf) of the parameters -> kind.
    make: makes the transformation, from the `kind_of` of the trees that it is given.
  """

  def packed_kind(names, leaf):
    if names[0] == _PACKED:
      return Kind(names[1], names[2] == _DECAYED)
    return kind_of(names[1:], leaf)

  inner = make(packed_kind)

  def update(updates, state, params=None):
    given = None if params is None else _pack(kind_of, params)
    flat, state = inner.update(_pack(kind_of, updates), state, given)
    return _unpack(kind_of, flat, updates), state

  return optax.GradientTransformation(
    lambda params: inner.init(_pack(kind_of, params)), update
  )


def norm(tree: Any) -> jax.Array:
  """Global norm of a tree, of which the small arrays are summed as one vector."""
  return optax.tree.norm(_pack(lambda *_: Kind("all", False), tree))


def _place(kind_of: KindOf, names: Names, leaf: Any) -> Names:
  """Where a leaf is in the packed tree."""
  small = leaf.size <= _SMALL and leaf.dtype == jnp.float32
  if not small or moe.STACK in names:
    return (_APART, *names)
  kind = kind_of(names, leaf)
  return (_PACKED, kind.partition, _DECAYED if kind.decays else "kept")


def _pack(kind_of: KindOf, tree: Any) -> dict[str, Any]:
  places: dict[Names, list[jax.Array]] = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    names = names_of(path)
    places.setdefault(_place(kind_of, names, leaf), []).append(leaf)
  arrays = {
    place: leaves[0] if place[0] == _APART else _joined(leaves)
    for place, leaves in places.items()
  }
  return flax.traverse_util.unflatten_dict(arrays)


def _joined(leaves: list[jax.Array]) -> jax.Array:
  return jnp.concatenate([leaf.reshape(-1) for leaf in leaves])


def _unpack(kind_of: KindOf, tree: Any, like: Any) -> Any:
  """The tree that was packed, of the structure of `like`."""
  arrays: dict[Names, Any] = flax.traverse_util.flatten_dict(tree)
  flat, structure = jax.tree_util.tree_flatten_with_path(like)
  done = dict.fromkeys(arrays, 0)
  leaves = []
  for path, leaf in flat:
    place = _place(kind_of, names_of(path), leaf)
    whole, start = arrays[place], done[place]
    done[place] += leaf.size
    if place[0] == _PACKED:
      part = jax.lax.slice_in_dim(whole, start, done[place])
      whole = part.reshape(leaf.shape)
    leaves.append(whole)
  return jax.tree.unflatten(structure, leaves)
