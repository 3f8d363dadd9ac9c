"""Normalisation of vectors. D is the normalised dimension, any others lead."""

import functools

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, scale_D: jax.Array | None, *, eps: float) -> jax.Array:
  """RMSNorm, Zhang & Sennrich 2019 (arXiv:1910.07467) eq. 4: x / sqrt(mean(x^2) + eps) * scale.

  Args:
    x: [..., D], any float dtype; the arithmetic is f32.
    scale_D: f32 factors, or None for none.
    eps: added to the mean square, > 0.

  Returns:
    The normalised x in its own dtype. Of it gradients need x alone: the f32 arrays on the way are
    computed again, as they take four times the memory of x in bf16.
  """
  return jax.checkpoint(functools.partial(_rms_norm, eps=eps))(x, scale_D)


def _rms_norm(x: jax.Array, scale_D: jax.Array | None, *, eps: float) -> jax.Array:
  x_f32 = x.astype(jnp.float32)
  y = x_f32 * jax.lax.rsqrt(jnp.mean(jnp.square(x_f32), axis=-1, keepdims=True) + eps)
  if scale_D is not None:
    y = y * scale_D.reshape((1,) * (y.ndim - 1) + scale_D.shape)
  return y.astype(x.dtype)


def layer_norm(x: jax.Array, scale_D: jax.Array | None, bias_D: jax.Array, *, eps: float):
  """Layer normalisation, Ba et al. 2016 (arXiv:1607.06450): (x - mean) / sqrt(var + eps) * scale + bias.

  Arguments and result are those of `rms_norm`; bias_D is f32.
  """
  return jax.checkpoint(functools.partial(_layer_norm, eps=eps))(x, scale_D, bias_D)


def _layer_norm(x: jax.Array, scale_D: jax.Array | None, bias_D: jax.Array, *, eps: float):
  x_f32 = x.astype(jnp.float32)
  x_f32 = x_f32 - jnp.mean(x_f32, axis=-1, keepdims=True)
  y = _rms_norm(x_f32, scale_D, eps=eps) + bias_D.reshape((1,) * (x.ndim - 1) + bias_D.shape)
  return y.astype(x.dtype)
