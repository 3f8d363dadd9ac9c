"""Fewer bits a weight, for decoding: parameters to parameters.

A token takes as long as reading the weights does, so half the bytes are nearly twice the tokens. Knows
no model: what is packed (`ops.packed`, by `generate.prepare`) is rounded, all else stays.
"""

import math

import jax
import jax.numpy as jnp

from lmjax.core.types import Params
from lmjax.ops.packed import Packed

_LARGEST = 127
_SMALLEST = 1e-30  # a scale that divides zeros


def quantize(params: Params, group: int = 32) -> Params:
  """`params` with every packed matrix in int8, and an f32 scale for each `group` inputs of an output.

  Symmetric rounding to nearest: w ~ scale * round(w / scale), scale = max |w| / 127 over the group.

  Args:
    params: as `prepare` returns them.
    group: inputs that share a scale; where it does not divide a matrix's inputs, their largest
      common divisor.
  """
  is_packed = lambda node: isinstance(node, Packed)
  round_one = lambda node: _quantized(node, group) if is_packed(node) else node
  return jax.tree.map(round_one, params, is_leaf=is_packed)


def _quantized(w: Packed, group: int) -> Packed:
  if w.scale is not None:
    return w
  *outer, inner = w.values.shape
  values = w.values.astype(jnp.float32).reshape(*outer, -1, math.gcd(inner, group))
  scale = jnp.max(jnp.abs(values), axis=-1, keepdims=True) / _LARGEST
  rounded = jnp.round(values / jnp.maximum(scale, _SMALLEST)).astype(jnp.int8)
  return Packed(rounded.reshape(w.values.shape), scale[..., 0])
