"""Self-attention with its weights: projections, positions, the kernel and the cache of keys.

B batch, L length, M cache slots, D width, H query heads, G key/value heads, K head dim.
"""

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

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
    same = {'scale': scale, 'softcap': c.attention_softcap, 'dtype': c.dtype}
    if cache is None:
      ring = axis_sizes().get('context', 1) > 1
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
      return y, None
    packed = isinstance(self.get_variable('params', 'query'), Packed)
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
    return attention.attend(q_BLHK, cache['k'], cache['v'], mask_BLM, **same), cache


def _attend_rows(q_BLHK, positions_BL, cache, *, window, **same):
  """Each row of x against its row of the cache; a few at a time, as each gets a copy of it."""

  def some(given):
    q_LHK, position_L, row = given
    mask_1LM = cache_mask(position_L[None], cache['k'].shape[1], window)
    k_1MGK, v_1MGK = cache['k'][row][None], cache['v'][row][None]
    return attention.attend(q_LHK[None], k_1MGK, v_1MGK, mask_1LM, **same)[0]

  return jax.lax.map(some, (q_BLHK, positions_BL, cache['row']), batch_size=_ROWS)


def _attend_native(qkv, segments_BL, positions_BL, cache, **settings):
  """The same for one new token a row, all in f32: reads filled slots only, writes in place."""
  position_B = positions_BL[:, 0]
  row_B = cache.get('row', jnp.arange(len(position_B), dtype=jnp.int32))
  slot_B = jnp.where(segments_BL[:, 0] > 0, position_B, cache['k'].shape[1])
  q_BHK, k_BGK, v_BGK = (x[:, 0].astype(jnp.float32) for x in qkv)
  y_BHK, k, v = native.attend(
    q_BHK, k_BGK, v_BGK, row_B, position_B, slot_B, cache['k'], cache['v'], **settings
  )
  return y_BHK, {**cache, 'k': k, 'v': v}


def write_cache(cache, k_BLGK, v_BLGK, segments_BL, positions_BL):
  """Puts keys and values in the slots of their positions; padding is written nowhere."""
  slots = cache['k'].shape[1]
  slot_BL = jnp.where(segments_BL > 0, positions_BL, slots)
  rows_B1 = cache.get('row', jnp.arange(slot_BL.shape[0]))[:, None]
  put = lambda old, new: old.at[rows_B1, slot_BL].set(new, mode='drop')
  return {**cache, 'k': put(cache['k'], k_BLGK), 'v': put(cache['v'], v_BLGK)}


def cache_mask(positions_BL: jax.Array, slots: int, window: int) -> jax.Array:
  """Which slots each query sees, bool [B, L, M]: those up to its own position, within the window."""
  back_BLM = positions_BL[:, :, None] - jnp.arange(slots)[None, None, :]
  return (back_BLM >= 0) & (back_BLM < window) if window else back_BLM >= 0
