"""Weights laid out for decoding: a row for each output, in the dtype that they are read in.

For one CPU: nothing here is split over devices. T rows, I inputs, O outputs, S groups
of inputs.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.core import processor
from lmjax.ops import native


class Packed(NamedTuple):
  """A matrix that `ops.dot` takes in place of an array; what it was rounded to, it stays.

  values: [outputs..., inputs...] of the array in einsum's order, f32, bf16 or int8.
  scale: f32 [outputs..., all inputs but the last..., groups] of int8 values, which times it are the
    weights: a factor for each group along the last dimension. Else None.
  """

  values: jax.Array
  scale: jax.Array | None = None

  def product_dtype(self, rows: int) -> str:
    """What both sides of a product with so many rows round to, bf16 only where the CPU multiplies it."""
    narrow = self.values.dtype == jnp.bfloat16 and processor.multiplies_bf16()
    return 'bfloat16' if narrow and rows > native.MOST_ROWS else 'float32'


def packed_dot(spec: str, x: jax.Array, w: Packed) -> jax.Array:
  """`einsum(spec, x, w)` in f32; `spec` names the dimensions of w as they were before packing."""
  operands, result = spec.split('->')
  left, right = operands.split(',')
  inner = ''.join(letter for letter in right if letter not in result)
  outer = ''.join(letter for letter in right if letter in result)
  rows = left.removesuffix(inner)
  assert (left, result) == (rows + inner, rows + outer), f'{spec}: w cannot be packed'
  lead, O = x.shape[: len(rows)], w.values.shape[: len(outer)]
  w_OI = w.values.reshape(math.prod(O), -1)
  scale_OS = None if w.scale is None else w.scale.reshape(w_OI.shape[0], -1)
  y_TO = _rows_dot(x.reshape(-1, w_OI.shape[1]), Packed(w_OI, scale_OS))
  return y_TO.reshape(*lead, *O)


def _rows_dot(x_TI: jax.Array, w: Packed) -> jax.Array:
  rows = x_TI.shape[0]
  if rows <= native.MOST_ROWS and native.available():
    return native.multiply(x_TI.astype(jnp.float32), w.values, w.scale)
  w_OI = w.values if w.scale is None else unpack(w)
  x_TI, w_OI = (x.astype(w.product_dtype(rows)) for x in (x_TI, w_OI))
  return jnp.einsum('TI,OI->TO', x_TI, w_OI, preferred_element_type=jnp.float32)


def unpack(w: Packed) -> jax.Array:
  """The weights in f32, shaped as `w.values`."""
  values = w.values.astype(jnp.float32)
  if w.scale is None:
    return values
  *outer, groups = w.scale.shape
  return (values.reshape(*outer, groups, -1) * w.scale[..., None]).reshape(values.shape)
