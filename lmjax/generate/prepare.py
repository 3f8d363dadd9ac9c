"""A model and its parameters laid out for decoding on the device at hand.

On CPUs, where a token takes as long as reading the weights: layers in a list (a scan copies each out
of its stack), matrices with a row for each output, read in what their products round to, all else in
f32. On other devices nothing changes. Knows nothing about text.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.core import tree
from lmjax.core.types import Params
from lmjax.models.transformer import Decoder
from lmjax.ops import native
from lmjax.ops.packed import Packed

# Matrices by the names of their dimensions -> how many of those, from the left, are summed over.
_INPUTS = {
  ('embed', 'heads', 'head_dim'): 1,
  ('embed', 'kv_heads', 'head_dim'): 1,
  ('heads', 'head_dim', 'embed'): 2,
  ('embed', 'mlp'): 1,
  ('mlp', 'embed'): 1,
  ('embed', 'vocab'): 1,
}


def prepare(model: Decoder, params: Params) -> tuple[Decoder, Params]:
  """What `generate` decodes fastest with; the same numbers but for the order of sums.

  A model in bf16 keeps its matrices in bf16, and computes in f32 beside them; where the CPU multiplies
  bf16, products of many rows, those of attention too, round both sides as the model itself would.
  Prepared ones, and those on GPUs or several devices, come back as they are.
  """
  if is_prepared(params) or not _on_one_cpu(params):
    return model, params
  narrow = model.product_dtype == 'bfloat16'
  # Without the kernels a row times a bf16 matrix converts all of it at each token.
  dtype = jnp.bfloat16 if narrow and native.available() else jnp.float32
  listed = dataclasses.replace(model, layout='list')
  params, dims = tree.unstack(params), listed.dims()
  params = jax.tree.map(
    lambda names, w: _pack(names, w, narrow, dtype), dims, params, is_leaf=_is_names
  )
  if model.head == 'tied':
    params = params | {'head': Packed(_rounded(params['embed'], narrow, dtype))}
  return dataclasses.replace(listed, head='untied', dtype='float32', matmul=None), params


def is_prepared(params: Params) -> bool:
  return isinstance(params.get('head'), Packed)


def _on_one_cpu(params: Params) -> bool:
  devices = {d for x in jax.tree.leaves(params) if isinstance(x, jax.Array) for d in x.devices()}
  return jax.default_backend() == 'cpu' and len(devices) <= 1


def _pack(names: tuple[str, ...], w: jax.Array, narrow: bool, dtype: Any) -> jax.Array | Packed:
  if names not in _INPUTS:
    return w
  inputs = _INPUTS[names]
  order = (*range(inputs, w.ndim), *range(inputs))
  return Packed(jnp.transpose(_rounded(w, narrow, dtype), order))


def _rounded(w: jax.Array, narrow: bool, dtype: Any) -> jax.Array:
  return jnp.asarray(w, jnp.bfloat16 if narrow else jnp.float32).astype(dtype)


def _is_names(node: Any) -> bool:
  return isinstance(node, tuple)
