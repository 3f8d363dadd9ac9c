"""Matrices made nearly orthogonal: the direction in which Muon moves them.

Newton-Schulz iterations that raise small singular values and keep large ones near 1 (Jordan et al. 2024,
github.com/KellerJordan/Muon). `optax.contrib.scale_by_muon` does the same in the dtype of the gradients; here
products round their operands to bf16 and sum in f32, and a tall matrix is not transposed for them.

N matrices of a leaf, I inputs, O outputs.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from lmjax.core import processor
from lmjax.ops.dot import dot

Preconditioning = Literal['frobenius', 'aol', 'schatten']

_LINEAR, _CUBIC, _QUINTIC = 3.4445, -4.7750, 2.0315
_SMALLEST = 1e-8  # norms count as this at least


def orthogonalize(
  numbers: Any, steps: int, preconditioning: Preconditioning
) -> optax.GradientTransformation:
  """Replaces each update by a nearly orthogonal one, of singular values about 0.7 to 1.2.

  Args:
    numbers: a tree like the updates, of `MuonDimensionNumbers`: the axes that are a matrix's input
      and output, next to one another and behind those that count matrices.
    steps: iterations.
    preconditioning: how a matrix is scaled first, so that no singular value is above 1.
  """

  def one(axes: MuonDimensionNumbers, update: jax.Array) -> jax.Array:
    fan_in, fan_out = fans(axes, update.shape)
    update_NIO = update.reshape(-1, fan_in, fan_out)
    iterate = functools.partial(newton_schulz, steps=steps, preconditioning=preconditioning)
    fast = functools.partial(iterate, dtype='bfloat16')
    if processor.multiplies_bf16():
      return fast(update_NIO).reshape(update.shape)
    exact = functools.partial(iterate, dtype='float32')
    return jax.lax.platform_dependent(update_NIO, cpu=exact, default=fast).reshape(update.shape)

  is_numbers = lambda node: isinstance(node, MuonDimensionNumbers)
  return optax.stateless(
    lambda updates, params: jax.tree.map(one, numbers, updates, is_leaf=is_numbers)
  )


def fans(axes: MuonDimensionNumbers, shape: tuple[int, ...]) -> tuple[int, int]:
  """How many numbers go into a matrix, and come out of it."""
  fan_in, fan_out = (math.prod(shape[axis] for axis in side) for side in axes)  # type: ignore[union-attr]
  return fan_in, fan_out


def newton_schulz(
  x_NIO: jax.Array, steps: int, preconditioning: Preconditioning, dtype: str
) -> jax.Array:
  """Nearly orthogonal matrices of the singular vectors of `x_NIO`, f32 [N, I, O].

  Each iteration is x <- a x + b (x x^T) x + c (x x^T)^2 x, on the shorter side of x. The first also
  scales: by the norm of x (frobenius), by that of x x^T (schatten, arXiv:2506.10935), or each row by
  the sum of its absolute products (aol, arXiv:2512.04632).
  """
  wide = x_NIO.shape[1] <= x_NIO.shape[2]
  gram_spec, apply_spec = (
    ('nij,nkj->nik', 'nik,nkj->nij') if wide else ('nji,njk->nik', 'njk,nki->nji')
  )
  x_NIO = x_NIO.astype(jnp.float32)
  if preconditioning == 'frobenius':
    x_NIO /= jnp.linalg.norm(x_NIO, axis=(1, 2), keepdims=True) + _SMALLEST
  for step in range(steps):
    gram_NKK = dot(gram_spec, x_NIO, x_NIO, dtype)
    if step == 0 and preconditioning != 'frobenius':
      scale_NK = _scales(gram_NKK, preconditioning)
      x_NIO *= scale_NK[:, :, None] if wide else scale_NK[:, None, :]
      gram_NKK *= scale_NK[:, :, None] * scale_NK[:, None, :]
    power_NKK = _CUBIC * gram_NKK + _QUINTIC * dot('nik,nkj->nij', gram_NKK, gram_NKK, dtype)
    operands = (power_NKK, x_NIO) if wide else (x_NIO, power_NKK)
    x_NIO = _LINEAR * x_NIO + dot(apply_spec, *operands, dtype)
  return x_NIO


def _scales(gram_NKK: jax.Array, preconditioning: Preconditioning) -> jax.Array:
  """Factors [N, K] of the rows on the shorter side."""
  if preconditioning == 'aol':
    size_NK = jnp.sum(jnp.abs(gram_NKK), axis=-1)
  else:
    size_NK = jnp.linalg.norm(gram_NKK, axis=(1, 2))[:, None] + jnp.zeros(gram_NKK.shape[:2])
  return jax.lax.rsqrt(jnp.maximum(size_NK, _SMALLEST))
