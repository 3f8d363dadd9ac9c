"""The one matrix product: operands in the compute dtype, sums in f32, forward and backward.

bf16 pays on CPUs only where every product asks for an f32 result; autodiff alone would lose that in
the backward pass, where it multiplies an f32 cotangent with a bf16 operand. Products in 8 bits are
for GPUs from the H100 on, and compile-checked only: neither their speed there nor what they cost a
training run is measured. Knows nothing of models.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.ops.adapted import Adapted, low_rank_specs
from lmjax.ops.packed import Packed, packed_dot

# What `float8` rounds operands, and cotangents, to (Micikevicius et al. 2022, arXiv:2209.05433):
# gradients want the wider range.
_OPERAND, _COTANGENT = 'float8_e4m3fn', 'float8_e5m2'
_SMALLEST = 1e-30  # a tensor whose largest value is less counts as zeros


class _Rounded(NamedTuple):
  """values * scale is what was rounded; no scale is 1."""

  values: jax.Array
  scale: jax.Array | None


def dot(
  spec: str, x: jax.Array, w: jax.Array | Packed | Adapted, dtype: str = 'float32'
) -> jax.Array:
  """`einsum(spec, x, w)` of operands cast to `dtype`, accumulated and returned in f32.

  Args:
    spec: an einsum string of two operands without repeated letters in one, 'BLD,DF->BLF'; every
      letter of an operand stands in the other or in the result.
    x, w: arrays of any float dtype; gradients come back in their own dtypes.
    dtype: 'float32', 'bfloat16' or 'float8': what the operands (and the cotangent) are rounded to.
      In 8 bits a tensor is scaled so that its largest value is the largest there is. A `Packed` w
      was rounded when it was packed, and has no gradient. An `Adapted` w is never added up.
  """
  if isinstance(w, Packed):
    return packed_dot(spec, x, w)
  if isinstance(w, Adapted):
    return _adapted(dot, spec, x, w, dtype)
  return _dot(spec, x, w, dtype, False)  # type: ignore[return-value]


def project(spec: str, x: jax.Array, w: jax.Array | Packed | Adapted, dtype: str) -> jax.Array:
  """`dot` of activations with weights, for results that are rounded to `dtype` soon anyway.

  On NVIDIA GPUs in bf16 they, and gradients to x, are rounded as they are written, from sums in f32,
  which halves what goes through memory and from device to device; on CPUs that is no gain. Still
  returned in f32. Gradients to w are never rounded.
  """
  if isinstance(w, Packed):
    return packed_dot(spec, x, w)
  if isinstance(w, Adapted):
    return _adapted(project, spec, x, w, dtype)
  return _dot(spec, x, w, dtype, True)  # type: ignore[return-value]


def _adapted(product: Callable, spec: str, x: jax.Array, w: Adapted, dtype: str) -> jax.Array:
  """`product` of x with the matrix, and with its two narrow ones in turn."""
  narrow, wide = low_rank_specs(spec)
  if isinstance(w.w, Packed):
    # Else what it is unpacked to would be kept for the backward pass, of all layers at once.
    y = jax.checkpoint(packed_dot, static_argnums=0)(spec, x, w.w)
  else:
    y = product(spec, x, w.w, dtype)
  return y + product(wide, product(narrow, x, w.a, dtype), w.b, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def _dot(spec: str, x: jax.Array, w: jax.Array, dtype: str, rounds: bool) -> jax.Array:
  return _multiply(spec, _round(x, dtype, _OPERAND), _round(w, dtype, _OPERAND), rounds)


def _forward(spec: str, x: jax.Array, w: jax.Array, dtype: str, rounds: bool):
  # Residuals in the compute dtype: half the memory in bf16. The empty arrays carry the dtypes.
  x_low, w_low = _round(x, dtype, _OPERAND), _round(w, dtype, _OPERAND)
  y = _multiply(spec, x_low, w_low, rounds)
  return y, (x_low, w_low, jnp.empty(0, x.dtype), jnp.empty(0, w.dtype))


def _backward(spec: str, dtype: str, rounds: bool, residuals, dy: jax.Array):
  x, w, x_like, w_like = residuals
  operands, result = spec.split('->')
  left, right = operands.split(',')
  dy_low = _round(dy, dtype, _COTANGENT)
  dx = _multiply(f'{result},{right}->{left}', dy_low, w, rounds)
  dw = _multiply(f'{left},{result}->{right}', x, dy_low, False)
  return dx.astype(x_like.dtype), dw.astype(w_like.dtype)


_dot.defvjp(_forward, _backward)


def _round(x: jax.Array, dtype: str, narrow: str) -> _Rounded:
  """`x` in `dtype`; for 'float8' in the 8-bit format `narrow`, scaled to its range."""
  if dtype != 'float8':
    return _Rounded(x.astype(dtype), None)
  x = x.astype(jnp.float32)
  largest = jnp.maximum(jnp.max(jnp.abs(x)), _SMALLEST)
  scale = largest / float(jnp.finfo(narrow).max)
  return _Rounded((x / scale).astype(narrow), scale)


def _multiply(spec: str, x: _Rounded, w: _Rounded, rounds: bool) -> jax.Array:
  exact = functools.partial(jnp.einsum, spec, preferred_element_type=jnp.float32)
  if rounds and x.values.dtype == jnp.bfloat16:
    rounded = lambda x, w: jnp.einsum(spec, x, w).astype(jnp.float32)
    return jax.lax.platform_dependent(x.values, w.values, cuda=rounded, default=exact)
  y = exact(x.values, w.values)
  return y if x.scale is None or w.scale is None else y * (x.scale * w.scale)
