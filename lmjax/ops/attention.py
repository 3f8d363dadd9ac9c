"""Causal attention over packed rows: a reference, and one that skips what causality masks.

B batch, L query length, M key length, H query heads, G key/value heads, R = H / G, K head dim.
Sums and softmax are f32. Segments keep packed posts apart: 0 is padding, which sees only padding.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.ops.dot import dot
from lmjax.parallel.sharding import axis_sizes

_MASKED = -2.0e38
_BLOCKS = 16  # of a row, at most, that are compiled one by one; their probabilities stay in memory
_SECTIONS = 8  # of a row that has more, each a loop


def causal_mask(
  segments_BL: jax.Array, window: int, queries: tuple[int, int] | None = None, first: int = 0
) -> jax.Array:
  """Which keys each query sees, bool [B, L, M], for some of the queries of a row.

  Args:
    segments_BL: i32, the post that each token is of.
    window: a query sees itself and the window - 1 tokens before it; 0 = all before it.
    queries: (start, stop), or all; keys run from `first` to stop.
  """
  start, stop = queries or (0, segments_BL.shape[1])
  query_L, key_M = jnp.arange(start, stop)[:, None], jnp.arange(first, stop)[None, :]
  mask_LM = key_M <= query_L
  if window:
    mask_LM &= query_L - key_M < window
  same_BLM = segments_BL[:, start:stop, None] == segments_BL[:, None, first:stop]
  return same_BLM & mask_LM[None]


def first_key(start: int, window: int) -> int:
  """The first key that any query from `start` on can see."""
  return max(0, start - window + 1) if window else 0


def attend(
  q_BLHK: jax.Array,
  k_BMGK: jax.Array,
  v_BMGK: jax.Array,
  mask_BLM: jax.Array,
  *,
  scale: float,
  softcap: float | None = None,
  dtype: str = 'float32',
) -> jax.Array:
  """softmax(scale * q k^T, masked) v with every score in memory: the reference.

  Args:
    mask_BLM: bool, True where the query sees the key; every query must see one.
    scale: factor of the scores, usually 1 / sqrt(K).
    softcap: scores become softcap * tanh(scores / softcap), or None.
    dtype: what the operands of the two products are rounded to.

  Returns:
    f32 [B, L, H, K].
  """
  B, L, H, K = q_BLHK.shape
  G, M = k_BMGK.shape[2], k_BMGK.shape[1]
  R = H // G
  q_BLGRK = (q_BLHK * scale).reshape(B, L, G, R, K)
  # The heads of a group one after another, N = R L: XLA's products over two dimensions are slow on CPUs.
  # Where heads are split over devices they stay apart, or they would be moved around.
  apart = axis_sizes().get('tensor', 1) > 1
  n, shape = ('RL', (R, L)) if apart else ('N', (R * L,))
  q_BGNK = jnp.transpose(q_BLGRK, (0, 2, 3, 1, 4)).reshape(B, G, *shape, K)
  scores_BGNM = dot(f'BG{n}K,BMGK->BG{n}M', q_BGNK, k_BMGK, dtype)
  if softcap is not None:
    scores_BGNM = softcap * jnp.tanh(scores_BGNM / softcap)
  scores_BGRLM = scores_BGNM.reshape(B, G, R, L, M)
  scores_BGRLM = jnp.where(mask_BLM[:, None, None], scores_BGRLM, _MASKED)
  probs_BGRLM: Any = _softmax(scores_BGRLM, dtype)
  y_BGNK = dot(f'BG{n}M,BMGK->BG{n}K', probs_BGRLM.reshape(B, G, *shape, M), v_BMGK, dtype)
  y_BGRLK = y_BGNK.reshape(B, G, R, L, K)
  return jnp.transpose(y_BGRLK, (0, 3, 1, 2, 4)).reshape(B, L, H, K)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _softmax(scores: jax.Array, dtype: str) -> jax.Array:
  """f32 softmax over the last dimension; its gradient reads the result in `dtype`, as `dot` keeps it."""
  return jax.nn.softmax(scores, axis=-1)


def _softmax_forward(scores: jax.Array, dtype: str):
  probs = jax.nn.softmax(scores, axis=-1)
  return probs, probs.astype(dtype)


def _softmax_backward(dtype: str, probs: jax.Array, dprobs: jax.Array):
  del dtype
  probs = probs.astype(jnp.float32)
  return (probs * (dprobs - jnp.sum(probs * dprobs, axis=-1, keepdims=True)),)


_softmax.defvjp(_softmax_forward, _softmax_backward)


def attend_blocked(
  q_BLHK: jax.Array,
  k_BLGK: jax.Array,
  v_BLGK: jax.Array,
  segments_BL: jax.Array,
  *,
  window: int,
  block: int,
  scale: float,
  softcap: float | None = None,
  dtype: str = 'float32',
) -> jax.Array:
  """Self-attention of packed rows, `block` queries at a time against the keys they can see.

  Skips the half of the scores that causality masks (measured 2.3x faster, forward and backward,
  than jax.nn.dot_product_attention on 2 CPU cores). A row of more than `_BLOCKS` whole blocks, without
  window, goes through them in loops that compute scores again for gradients: slower, but block x L of
  them exist at a time. A block as long as the row is the reference. Shapes and the rest as in `attend`.
  """
  L = q_BLHK.shape[1]
  same = {'scale': scale, 'softcap': softcap, 'dtype': dtype}
  if not window and L % block == 0 and _BLOCKS * block < L:
    return _attend_in_loops(q_BLHK, k_BLGK, v_BLGK, segments_BL, block, same)
  starts = list(range(0, L, block))
  # Split, and keys put together again: gradients are then sums of blocks, and not of padded rows.
  sizes = [min(block, L - start) for start in starts]
  queries, keys, values = (jax.lax.split(x, sizes, axis=1) for x in (q_BLHK, k_BLGK, v_BLGK))
  outputs = []
  for number, start in enumerate(starts):
    lowest = first_key(start, window) // block
    k, v = (jnp.concatenate(x[lowest : number + 1], axis=1) for x in (keys, values))
    some = (start, start + sizes[number])
    mask_BLM = causal_mask(segments_BL, window, some, lowest * block)
    outputs.append(attend(queries[number], k, v, mask_BLM, **same))
  return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def _attend_in_loops(q_BLHK, k_BLGK, v_BLGK, segments_BL, block: int, same: dict[str, Any]):
  """The same in `_SECTIONS`, each a loop over its blocks against the keys up to its end."""
  L = q_BLHK.shape[1]
  section = -(-L // (block * _SECTIONS)) * block
  outputs = []
  for start in range(0, L, section):
    stop = min(L, start + section)
    k, v, segments_BM = (x[:, :stop] for x in (k_BLGK, v_BLGK, segments_BL))

    @jax.checkpoint
    def one(q, segments, query_L, k=k, v=v, segments_BM=segments_BM):
      seen_LM = jnp.arange(k.shape[1])[None, :] <= query_L[:, None]
      mask_BLM = (segments[:, :, None] == segments_BM[:, None, :]) & seen_LM[None]
      return attend(q, k, v, mask_BLM, **same)

    cut = lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, block, *x.shape[2:]), 1, 0)
    rows = (cut(q_BLHK[:, start:stop]), cut(segments_BL[:, start:stop]))
    places = jnp.arange(start, stop).reshape(-1, block)
    y = jax.lax.map(lambda part: one(*part), (*rows, places))
    outputs.append(jnp.moveaxis(y, 0, 1).reshape(q_BLHK.shape[0], stop - start, *q_BLHK.shape[2:]))
  return jnp.concatenate(outputs, axis=1)


def default_scale(head_dim: int) -> float:
  return 1.0 / math.sqrt(head_dim)
