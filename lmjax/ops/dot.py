"""The one matrix product: operands in the compute dtype, sums in f32, forward and backward.

bf16 pays on CPUs only where every product asks for an f32 result; autodiff alone would lose that in
the backward pass, where it multiplies an f32 cotangent with a bf16 operand. Knows nothing of models.
"""

import functools

import jax
import jax.numpy as jnp


def dot(spec: str, x: jax.Array, w: jax.Array, dtype: str = 'float32') -> jax.Array:
  """`einsum(spec, x, w)` of operands cast to `dtype`, accumulated and returned in f32.

  Args:
    spec: an einsum string of two operands without repeated letters in one, 'BLD,DF->BLF'; every
      letter of an operand stands in the other or in the result.
    x, w: arrays of any float dtype; gradients come back in their own dtypes.
    dtype: 'float32' or 'bfloat16', what the operands (and the cotangent) are rounded to.
  """
  return _dot(spec, x, w, dtype)  # type: ignore[return-value]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _dot(spec: str, x: jax.Array, w: jax.Array, dtype: str) -> jax.Array:
  return jnp.einsum(spec, x.astype(dtype), w.astype(dtype), preferred_element_type=jnp.float32)


def _forward(spec: str, x: jax.Array, w: jax.Array, dtype: str):
  # Residuals in the compute dtype: half the memory in bf16. The empty arrays carry the dtypes.
  x_low, w_low = x.astype(dtype), w.astype(dtype)
  y = jnp.einsum(spec, x_low, w_low, preferred_element_type=jnp.float32)
  return y, (x_low, w_low, jnp.empty(0, x.dtype), jnp.empty(0, w.dtype))


def _backward(spec: str, dtype: str, residuals, dy: jax.Array):
  x, w, x_like, w_like = residuals
  operands, result = spec.split('->')
  left, right = operands.split(',')
  dy = dy.astype(dtype)
  dx = jnp.einsum(f'{result},{right}->{left}', dy, w, preferred_element_type=jnp.float32)
  dw = jnp.einsum(f'{left},{result}->{right}', x, dy, preferred_element_type=jnp.float32)
  return dx.astype(x_like.dtype), dw.astype(w_like.dtype)


_dot.defvjp(_forward, _backward)
