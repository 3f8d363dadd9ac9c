"""Newton-Schulz beside optax's, which multiplies in f32."""

import jax
import numpy as np
import pytest
from optax.contrib import _muon as optax_muon

from lmjax.optim.orthogonal import newton_schulz

COEFFICIENTS = np.array([3.4445, -4.7750, 2.0315], np.float32)


@pytest.mark.parametrize('preconditioning', ['frobenius', 'aol', 'schatten'])
@pytest.mark.parametrize('shape', [(24, 40), (40, 24), (32, 32)], ids=str)
def test_each_matrix_is_what_optax_makes_of_it(shape, preconditioning):
  x_NIO = jax.random.normal(jax.random.key(0), (3, *shape)) * 1e-3
  found_NIO = newton_schulz(x_NIO, 4, preconditioning, 'float32')
  for x_IO, found_IO in zip(x_NIO, found_NIO, strict=True):
    expected_IO = optax_muon.orthogonalize_via_newton_schulz(
      x_IO, COEFFICIENTS, ns_steps=4, preconditioning=preconditioning
    )
    np.testing.assert_allclose(found_IO, expected_IO, atol=1e-4)


def test_products_in_bf16_leave_it_as_orthogonal():
  x_NIO = jax.random.normal(jax.random.key(0), (2, 64, 128))
  exact_NIO, rounded_NIO = (newton_schulz(x_NIO, 5, 'aol', d) for d in ('float32', 'bfloat16'))
  np.testing.assert_allclose(rounded_NIO, exact_NIO, atol=0.02)
  values = np.linalg.svd(rounded_NIO, compute_uv=False)
  assert 0.5 < values.min() <= values.max() < 1.3
