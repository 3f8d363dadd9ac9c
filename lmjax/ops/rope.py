"""Rotary position embedding, half-split (the layout of Llama checkpoints on Hugging Face).

B batch, L length, H heads, K head dim, J = K/2 frequencies.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.core.config import Config, leaf


class RopeScaling(Config):
  """How frequencies are stretched to read further than the model was trained for."""

  kind: Literal['linear', 'llama3'] = leaf(
    'linear', 'linear: divide every frequency; llama3: only the slow ones.'
  )
  factor: float = leaf(8.0, 'Stretch of the longest wavelengths.', low=1.0)
  original_length: int = leaf(8192, 'Length in tokens trained on before stretching.', low=1)
  low_frequency_factor: float = leaf(
    1.0, 'llama3: wavelengths above original_length / this are stretched in full.', above=0.0
  )
  high_frequency_factor: float = leaf(
    4.0, 'llama3: wavelengths below original_length / this are left alone.', above=0.0
  )


def frequencies(head_dim: int, base: float, scaling: RopeScaling | None) -> np.ndarray:
  """Radians a position for each pair of a head's dimensions, f64 [J].

  base ** (-2j / K), Su et al. 2021 (arXiv:2104.09864) section 3.2.2; stretched as `scaling` says
  (llama3: Llama 3.1's rule, with linear interpolation between the two factors).
  """
  rate_J = base ** (-np.arange(0, head_dim, 2) / head_dim)
  if scaling is None:
    return rate_J
  if scaling.kind == 'linear':
    return rate_J / scaling.factor
  turns_J = scaling.original_length * rate_J / (2 * math.pi)
  low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
  keep_J = np.clip((turns_J - low) / (high - low), 0.0, 1.0)
  return keep_J * rate_J + (1 - keep_J) * rate_J / scaling.factor


def angles(positions_BL: jax.Array, rate_J: np.ndarray) -> tuple[jax.Array, jax.Array]:
  """(cos, sin) f32 [B, L, 1, J] of every position: made once a forward pass, shared by the layers."""
  rate_11J = jnp.asarray(rate_J, jnp.float32)[None, None, :]
  angle_BLJ = positions_BL.astype(jnp.float32)[:, :, None] * rate_11J
  cos_BLJ, sin_BLJ = jax.lax.platform_dependent(angle_BLJ, cpu=_by_halves, default=_cos_sin)
  return cos_BLJ[:, :, None, :], sin_BLJ[:, :, None, :]


def _cos_sin(angle: jax.Array) -> tuple[jax.Array, jax.Array]:
  return jnp.cos(angle), jnp.sin(angle)


def _by_halves(angle_BLJ: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The same in a loop, whose results XLA keeps: else it computes them anew for every head of every layer."""
  count = 2 if angle_BLJ.shape[-1] % 2 == 0 else 1
  halves = jnp.stack(jnp.split(angle_BLJ, count, axis=-1))
  join = lambda x: jnp.concatenate(list(x), axis=-1)
  cos, sin = jax.lax.map(_cos_sin, halves)
  return join(cos), join(sin)


def rotate(x_BLHK: jax.Array, cos_sin: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates each pair (j, j + K/2) of every head by its angle; f32 arithmetic, x's dtype."""
  cos, sin = cos_sin
  first, second = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x_BLHK.dtype)
