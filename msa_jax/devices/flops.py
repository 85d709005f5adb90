"""What a program costs on paper: the operations of its matrix products."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def matmul_flops(function: Callable, *args: Any) -> float:
  """Operations of all matrix products and convolutions of a traced function.

  Loops count as often as they run (XLA's own count takes their bodies once), except
  `while` loops of unknown length; of a conditional the dearest branch counts.
  """
  return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def _flops(jaxpr: core.Jaxpr) -> float:
  total = 0.0
  for equation in jaxpr.eqns:
    inner = [_flops(_open(j)) for j in _subprograms(equation.params)]
    name = equation.primitive.name
    if name == "dot_general":
      (contract, _), _ = equation.params["dimension_numbers"]
      shape = _shape(equation.invars[0])
      depth = math.prod(shape[axis] for axis in contract)
      total += 2.0 * depth * math.prod(_shape(equation.outvars[0]))
    elif name == "conv_general_dilated":
      kernel = _shape(equation.invars[1])
      outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
      per_output = math.prod(kernel) / outputs
      total += 2.0 * per_output * math.prod(_shape(equation.outvars[0]))
    elif name == "scan":
      total += equation.params["length"] * sum(inner)
    elif name == "cond":
      total += max(inner)
    else:
      total += sum(inner)
  return total


def _shape(variable) -> tuple[int, ...]:
  return variable.aval.shape


def _subprograms(params):
  found = []
  for value in params.values():
    entries = value if isinstance(value, tuple | list) else (value,)
    found += [e for e in entries if isinstance(e, core.Jaxpr | core.ClosedJaxpr)]
  return found


def _open(jaxpr):
  return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
