"""Vectors from noise along a learnt flow, by Euler's or Heun's method, with classifier-free guidance.

Knows nothing about pictures. B batch, Z size of a vector, K features of a row.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from lmjax.core.config import Config, leaf
from lmjax.core.types import Params
from lmjax.models.diffusion import Diffusion, attributes_of


class FlowSampler(Config):
  """How the flow is followed from noise (time 0) to a vector (time 1)."""

  method: Literal['euler', 'heun'] = leaf(
    'heun', 'heun: of second order, twice the evaluations a step.'
  )
  steps: int = leaf(16, 'Steps of equal length.', low=1)
  guidance: float = leaf(
    1.25,
    'How far the prompt moves it from the unconditioned; 1 and no other: as conditioned.',
    low=0.0,
  )
  attribute_guidance: float = leaf(
    1.0,
    'How far attributes alone, a skin tone say, move it from there as well; 0: not.',
    low=0.0,
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def sample_vectors(
  model: Diffusion,
  sampler: FlowSampler,
  params: Params,
  noise_BZ: jax.Array,
  features_BK: jax.Array,
  weights_BK: jax.Array,
) -> jax.Array:
  """The vectors that `noise_BZ` flows to, f32 [B, Z].

  With guidances g and h the model's answer is u + g (c - u) + h (a - u), of c conditioned, a by attributes
  alone and u not (Ho & Salimans 2022, arXiv:2207.12598 eq. 6; Liu et al. 2022, arXiv:2206.01714 eq. 11). The
  last step is Euler's: the velocity at time 1 is 0 / 0.
  """
  B = noise_BZ.shape[0]
  thrice = lambda x: jnp.concatenate([x, x, x])
  features = thrice(features_BK)
  weights = jnp.concatenate([weights_BK, attributes_of(weights_BK), jnp.zeros_like(weights_BK)])

  def velocity(z_BZ: jax.Array, time: jax.Array) -> jax.Array:
    x = model.apply(params, thrice(z_BZ), jnp.full(3 * B, time), features, weights)
    told_BZ, attributes_BZ, untold_BZ = jnp.split(x, 3)
    x_BZ = untold_BZ + sampler.guidance * (told_BZ - untold_BZ)
    x_BZ += sampler.attribute_guidance * (attributes_BZ - untold_BZ)
    return (x_BZ - z_BZ) / (1.0 - time)

  length = 1.0 / sampler.steps

  def step(z_BZ: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
    time = i * length
    v_BZ = velocity(z_BZ, time)
    if sampler.method == 'heun':
      v_BZ = (v_BZ + velocity(z_BZ + length * v_BZ, time + length)) / 2.0
    return z_BZ + length * v_BZ, None

  z_BZ, _ = jax.lax.scan(step, noise_BZ, jnp.arange(sampler.steps - 1, dtype=jnp.float32))
  return z_BZ + length * velocity(z_BZ, jnp.asarray(1.0 - length))
