"""Products in 8 bits are as close to f32 as their formats let them be, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.ops.dot import dot

# Half the gap between neighbouring numbers, relative to them: 3 and 2 bits of mantissa.
OPERAND, COTANGENT = 2.0**-4, 2.0**-3


def normal(*shape, seed, scale=1.0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32) * scale


@jax.jit
def in_8_bits(x, w, cotangent):
  y, pull = jax.vjp(lambda x, w: dot('BLD,DF->BLF', x, w, 'float8'), x, w)
  return y, *pull(cotangent)


@jax.jit
def exact(x, w, cotangent):
  y, pull = jax.vjp(lambda x, w: dot('BLD,DF->BLF', x, w), x, w)
  return y, *pull(cotangent)


def error(found, expected):
  """Of a whole tensor, relative."""
  return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


# One so large and one so small that neither is in the range of an 8-bit number.
@pytest.mark.parametrize('scale', [1.0, 1e6, 1e-9])
def test_products_and_gradients_are_within_the_rounding_of_their_operands(scale):
  case = (
    normal(2, 32, 64, seed=0, scale=scale),
    normal(64, 48, seed=1, scale=0.02),
    normal(2, 32, 48, seed=2, scale=1e-4),
  )
  limits = (2 * OPERAND, OPERAND + COTANGENT, OPERAND + COTANGENT)
  for found, expected, limit in zip(in_8_bits(*case), exact(*case), limits, strict=True):
    assert found.dtype == jnp.float32
    assert 1e-3 < error(found, expected) < limit / 2


def test_numbers_that_8_bits_hold_are_multiplied_exactly():
  x = jnp.asarray([[448.0, 1.0, -2.0, 0.5]])
  w = jnp.asarray([[448.0], [3.0], [16.0], [0.0]])
  np.testing.assert_array_equal(dot('LD,DF->LF', x, w, 'float8'), [[448.0**2 + 3.0 - 32.0]])


def test_zeros_give_zeros_and_a_number_that_is_none_is_not_hidden():
  x, w = jnp.zeros((2, 4)), jnp.ones((4, 3))
  y, pull = jax.vjp(lambda x, w: dot('LD,DF->LF', x, w, 'float8'), x, w)
  assert not y.any()
  assert not any(grad.any() for grad in pull(jnp.zeros_like(y)))
  for bad in (jnp.inf, jnp.nan):
    assert not jnp.isfinite(dot('LD,DF->LF', x.at[0, 0].set(bad), w, 'float8')[0]).all()


def test_what_is_kept_for_the_backward_pass_has_8_bits():
  x, w = normal(32, 64, seed=0), normal(64, 48, seed=1)
  _, pull = jax.vjp(lambda x, w: dot('LD,DF->LF', x, w, 'float8'), x, w)
  large = [leaf for leaf in jax.tree.leaves(pull) if leaf.size > 1]
  assert {leaf.dtype.itemsize for leaf in large} == {1}
