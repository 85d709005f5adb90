"""Operations of programs, against counts by hand."""

import jax
import jax.numpy as jnp

from msa_jax.devices.flops import matmul_flops


def test_matrix_products_are_counted_as_often_as_loops_run_them():
  matrix = jnp.ones((3, 4))

  def run(values):
    looped, _ = jax.lax.scan(
      lambda carry, _: (carry @ jnp.ones((4, 4)), None), values, length=5
    )
    return jax.jit(lambda x: x @ jnp.ones((4, 7)))(looped)

  assert matmul_flops(run, matrix) == 5 * 2 * 3 * 4 * 4 + 2 * 3 * 4 * 7


def test_convolutions_are_counted_per_output_and_conditionals_by_their_dearest_branch():
  def convolve(values, kernel):
    return jax.lax.conv_general_dilated(
      values, kernel, (1,), "VALID", dimension_numbers=("NTC", "TIO", "NTC")
    )

  flops = matmul_flops(convolve, jnp.ones((2, 9, 3)), jnp.ones((4, 3, 5)))
  assert flops == 2 * (2 * 6 * 5) * (4 * 3)

  def choose(flag, values):
    return jax.lax.cond(flag, lambda x: x @ x, lambda x: x, values)

  assert matmul_flops(choose, True, jnp.ones((6, 6))) == 2 * 6**3
