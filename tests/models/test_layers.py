"""The non-linearities of the feed-forward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import kept_bytes

from lmjax.models.layers import activation, ungated


def normal(seed):
  return jax.random.normal(jax.random.key(seed), (4, 32))


@pytest.mark.parametrize('name', ['swiglu', 'geglu', 'relu2', 'gelu', 'gelu_exact'])
def test_an_activation_keeps_its_operands_alone(name):
  gate, up = normal(0), normal(1)
  if name in ungated:
    assert kept_bytes(lambda up: activation(name, 'bfloat16')(None, up), up) == up.nbytes / 2
  else:
    assert kept_bytes(activation(name, 'bfloat16'), gate, up) == (gate.nbytes + up.nbytes) / 2


def test_swiglu_has_the_gradient_of_its_formula():
  gate, up = normal(0), normal(1)
  total = lambda f: jax.jit(jax.grad(lambda gate, up: jnp.sum(f(gate, up) ** 2), argnums=(0, 1)))
  found = total(activation('swiglu', 'float32'))(gate, up)
  expected = total(lambda gate, up: gate / (1 + jnp.exp(-gate)) * up)(gate, up)
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), found, expected)
