"""What the doctor measures of a device: kernels beside their references, a product, a read."""

import math

import jax
import jax.numpy as jnp
import pytest

from lmjax.plan import chips


@pytest.mark.slow  # interpreted kernels take XLA long to compile
def test_a_device_is_measured_and_kernels_are_near_their_references():
  found = chips.measure(jax.local_devices()[3], width=64, size=1 << 16, interpret=True)
  assert found['flops'] > 0 < found['bytes']
  assert set(found['errors']) == {'attention', 'grouped product'}
  assert all(0 < error < 0.02 for error in found['errors'].values())
  assert chips.look() == []  # of CPUs there is nothing to find


def test_a_kernel_that_is_wrong_is_far_from_its_reference():
  assert math.isclose(
    chips.difference(lambda x: 1.1 * x, lambda x: x, jnp.ones(4)), 0.1, rel_tol=1e-5
  )
