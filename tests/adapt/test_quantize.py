"""Rounded weights are within half a step of what they were, and all else is untouched."""

import jax.numpy as jnp
import numpy as np

from lmjax.adapt.quantize import quantize
from lmjax.ops.packed import Packed, unpack


def test_a_rounded_weight_is_within_half_a_step_of_its_groups_largest():
  rng = np.random.default_rng(0)
  values = (rng.normal(size=(6, 2, 96)) * rng.uniform(0.1, 10, (6, 2, 1))).astype(np.float32)
  packed = quantize({'w': Packed(jnp.asarray(values))}, group=32)['w']
  assert packed.values.dtype == jnp.int8
  assert packed.scale.shape == (6, 2, 3)
  step = np.abs(values).reshape(6, 2, 3, 32).max(-1) / 127
  error = np.abs(np.asarray(unpack(packed)) - values).reshape(6, 2, 3, 32).max(-1)
  assert np.all(error <= 0.5001 * step)


def test_zeros_stay_zeros_and_groups_divide_what_is_there():
  packed = quantize({'w': Packed(jnp.zeros((4, 12)))}, group=32)['w']
  assert packed.scale.shape == (4, 3)
  assert not np.asarray(unpack(packed)).any()


def test_what_is_not_packed_or_already_rounded_stays():
  norm, once = np.ones(4), quantize({'w': Packed(jnp.ones((2, 4)))})
  again = quantize(once | {'norm': norm})
  assert again['norm'] is norm
  assert again['w'] is once['w']
