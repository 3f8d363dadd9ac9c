"""Self-attention with its weights: projections, positions, the kernel and the cache of keys.

B batch, L length, M cache slots, D width, H query heads, G key/value heads, K head dim.
"""

import math
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.models.layers import NormLayer, bias, weight
from lmjax.ops import attention, native, rope
from lmjax.ops.dot import project
from lmjax.ops.packed import Packed
from lmjax.parallel.ring import attend_ring
from lmjax.parallel.sharding import axis_sizes, constrain

if TYPE_CHECKING:
  from lmjax.models.transformer import Decoder

_ROWS = 16  # of the cache, that are copied at a time where each new token says its own


class Attention(nn.Module):
  """Causal self-attention of packed rows, or of new tokens against a cache."""

  config: 'Decoder'
  window: int

  @nn.compact
  def __call__(self, x_BLD, segments_BL, positions_BL, turn, cache):
    c = self.config
    H, G, K, D = c.heads, c.kv_heads, c.head_dim, c.width
    q_BLHK = self._project('query', x_BLD, H, 'heads')
    k_BLGK = self._project('key', x_BLD, G, 'kv_heads')
    v_BLGK = self._project('value', x_BLD, G, 'kv_heads').astype(c.dtype)
    if c.qk_norm is not None:
      q_BLHK = NormLayer(c.qk_norm, K, name='query_norm')(q_BLHK)
      k_BLGK = NormLayer(c.qk_norm, K, name='key_norm')(k_BLGK)
    if c.positions is None:
      q_BLHK, k_BLGK = (rope.rotate(x, turn) for x in (q_BLHK, k_BLGK))
    q_BLHK, k_BLGK = (x.astype(c.dtype) for x in (q_BLHK, k_BLGK))
    y_BLHK, cache = self._attend(q_BLHK, k_BLGK, v_BLGK, segments_BL, positions_BL, cache)
    dims = ('heads', 'head_dim', 'embed')
    out_HKD = weight(self, 'out', (H, K, D), dims, inputs=2, output=True)
    y_BLD = project('BLHK,HKD->BLD', y_BLHK.astype(c.dtype), out_HKD, c.product_dtype)
    if c.biases in ('attention', 'all'):
      y_BLD += bias(self, 'out_bias', (D,), ('norm',))[None, None]
    return y_BLD, cache

  def _project(self, name, x_BLD, heads, dim):
    c = self.config
    w_DHK = weight(self, name, (c.width, heads, c.head_dim), ('embed', dim, 'head_dim'))
    y_BLHK = constrain(
      project('BLD,DHK->BLHK', x_BLD, w_DHK, c.product_dtype), 'batch', 'length', dim, None
    )
    if c.biases != 'none':
      b_HK = bias(self, f'{name}_bias', (heads, c.head_dim), (dim, 'head_dim'))
      y_BLHK += b_HK[None, None]
    return y_BLHK

  def _attend(self, q_BLHK, k_BLGK, v_BLGK, segments_BL, positions_BL, cache):
    c = self.config
    scale = c.attention_scale or attention.default_scale(c.head_dim)
    query = self.get_variable('params', 'query')
    packed = isinstance(query, Packed)
    dtype = query.product_dtype(math.prod(q_BLHK.shape[:2])) if packed else c.dtype
    same = {'scale': scale, 'softcap': c.attention_softcap, 'dtype': dtype}
    if cache is None or not cache['k'].shape[1]:  # nothing is before the tokens of these rows
      ring = cache is None and axis_sizes().get('context', 1) > 1
      attend = attend_ring if ring else c.choose_attention()
      y = attend(
        q_BLHK,
        k_BLGK,
        v_BLGK,
        segments_BL,
        window=self.window,
        block=c.attention_block,
        **same,
      )
      assert cache is None or 'k_scale' not in cache, 'an empty cache is not in int8'
      return y, cache and {'k': k_BLGK, 'v': v_BLGK}
    if 'k_scale' in cache:
      q_BLHK, k_BLGK = spread(q_BLHK), spread(k_BLGK)
    if packed and q_BLHK.shape[1] == 1 and native.available():
      y_BHK, cache = _attend_native(
        (q_BLHK, k_BLGK, v_BLGK),
        segments_BL,
        positions_BL,
        cache,
        window=self.window,
        scale=scale,
        softcap=c.attention_softcap,
      )
      return y_BHK[:, None], cache
    cache = write_cache(cache, k_BLGK, v_BLGK, segments_BL, positions_BL)
    if 'row' in cache:
      return _attend_rows(q_BLHK, positions_BL, cache, window=self.window, **same), cache
    mask_BLM = cache_mask(positions_BL, cache['k'].shape[1], self.window)
    k_BMGK, v_BMGK = read_cache(cache)
    return attention.attend(q_BLHK, k_BMGK, v_BMGK, mask_BLM, **same), cache


def _attend_rows(q_BLHK, positions_BL, cache, *, window, **same):
  """Each row of x against its row of the cache; a few at a time, as each gets a copy of it."""

  def some(given):
    q_LHK, position_L, row = given
    mask_1LM = cache_mask(position_L[None], cache['k'].shape[1], window)
    kept = {name: x[row][None] for name, x in cache.items() if name != 'row'}
    k_1MGK, v_1MGK = read_cache(kept)
    return attention.attend(q_LHK[None], k_1MGK, v_1MGK, mask_1LM, **same)[0]

  return jax.lax.map(some, (q_BLHK, positions_BL, cache['row']), batch_size=_ROWS)


def _attend_native(qkv, segments_BL, positions_BL, cache, **settings):
  """The same for one new token a row, all in f32: reads filled slots only, writes in place."""
  position_B = positions_BL[:, 0]
  row_B = cache.get('row', jnp.arange(len(position_B), dtype=jnp.int32))
  slot_B = jnp.where(segments_BL[:, 0] > 0, position_B, cache['k'].shape[1])
  q_BHK, k_BGK, v_BGK = (x[:, 0].astype(jnp.float32) for x in qkv)
  kept = {name: x for name, x in cache.items() if name != 'row'}
  y_BHK, kept = native.attend(q_BHK, k_BGK, v_BGK, row_B, position_B, slot_B, kept, **settings)
  return y_BHK, {**cache, **kept}


def write_cache(cache, k_BLGK, v_BLGK, segments_BL, positions_BL):
  """Puts keys and values in the slots of their positions; padding is written nowhere."""
  slots = cache['k'].shape[1]
  slot_BL = jnp.where(segments_BL > 0, positions_BL, slots)
  rows_B1 = cache.get('row', jnp.arange(slot_BL.shape[0]))[:, None]
  new = {'k': k_BLGK, 'v': v_BLGK}
  if 'k_scale' in cache:
    new['k'], new['k_scale'] = round_int8(k_BLGK)
    new['v'], new['v_scale'] = round_int8(v_BLGK)
  put = lambda name: cache[name].at[rows_B1, slot_BL].set(new[name], mode='drop')
  return {**cache, **{name: put(name) for name in new}}


def read_cache(cache) -> tuple[jax.Array, jax.Array]:
  """The keys and values of a cache, in f32 where it keeps them in int8."""
  if 'k_scale' not in cache:
    return cache['k'], cache['v']
  return cache['k'] * cache['k_scale'], cache['v'] * cache['v_scale']


def spread(x: jax.Array) -> jax.Array:
  """`x` [..., K] turned by an orthogonal matrix, which keeps products of two that both are.

  Some channels of keys are far larger than the others, and would take all of int8's steps. Turned by
  a Hadamard matrix none stands out (QuaRot, Ashkboos et al. 2024, arXiv:2404.00456): with SmolLM2-135M's
  keys and values in int8 the next token's distribution moved by 6e-4 nats in place of 1.6e-3.
  """
  size = x.shape[-1] & -x.shape[-1]
  turn = np.ones((1, 1), np.float32)
  while len(turn) < size:
    turn = np.block([[turn, turn], [turn, -turn]])
  parts = x.reshape(*x.shape[:-1], -1, size)
  return (parts @ (turn / math.sqrt(size))).reshape(x.shape)


def round_int8(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """int8 and f32 scales [..., 1] whose product is `x` [..., K], to 1/254 of its largest."""
  scale = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=-1, keepdims=True) / 127
  return jnp.round(x / jnp.maximum(scale, 1e-30)).astype(jnp.int8), scale


def cache_mask(positions_BL: jax.Array, slots: int, window: int) -> jax.Array:
  """Which slots each query sees, bool [B, L, M]: those up to its own position, within the window."""
  back_BLM = positions_BL[:, :, None] - jnp.arange(slots)[None, None, :]
  return (back_BLM >= 0) & (back_BLM < window) if window else back_BLM >= 0
