"""The grouped product for GPUs gives what a product a block gives, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.core.errors import UserError
from lmjax.ops.grouped import grouped_dot


def normal(*shape, seed):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def by_block(x_NTD, w_EDF, expert_N):
  w_NDF = jnp.concatenate([w_EDF, jnp.zeros_like(w_EDF[:1])])[expert_N]
  return jnp.einsum('NTD,NDF->NTF', x_NTD, w_NDF)


@pytest.mark.parametrize(('dtype', 'limit'), [('float32', 1e-5), ('bfloat16', 0.01)])
def test_every_block_meets_its_own_matrix(dtype, limit):
  # Several tiles of every dimension, a matrix that no block wants and a block that wants none.
  x, w = normal(4, 128, 136, seed=0), normal(3, 136, 200, seed=1)
  expert_N = jnp.asarray([0, 0, 2, 3], jnp.int32)
  cotangent = normal(4, 128, 200, seed=2)

  def all_of(product):
    y, pull = jax.vjp(product, x, w)
    return y, *pull(cotangent)

  found = jax.jit(lambda: all_of(lambda x, w: grouped_dot(x, w, expert_N, dtype, True)))()
  for a, b in zip(found, all_of(lambda x, w: by_block(x, w, expert_N)), strict=True):
    assert float(jnp.abs(a - b).max()) <= limit * float(jnp.abs(b).max())
  y, dx, dw = found
  assert not y[3].any()
  assert not dx[3].any()
  assert not dw[1].any()


def test_arrays_that_the_kernel_cannot_count_are_refused():
  x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 128, 4096), (8, 4096, 65536)))
  expert_N = jax.ShapeDtypeStruct((1,), jnp.int32)
  with pytest.raises(UserError, match=r'2\^31 elements is the most: split them with mesh\.expert'):
    jax.eval_shape(lambda *given: grouped_dot(*given, 'bfloat16'), x, w, expert_N)
