"""Attention over rows that are split along their length: keys and values go around a ring.

Each device of the `context` axis holds a run of every row. For the time of the attention it takes
two pieces instead, the d-th from the front and the d-th from the back, so that causality leaves
every device the same work (zigzag; Brandon et al. 2023, arXiv:2311.09431; Llama 3,
arXiv:2407.21783 section 3.3.2). Scores and softmax are those of `ops/attention.py`, merged piece by
piece (Liu et al. 2023, arXiv:2310.01889); the backward pass goes around once more and keeps no keys
but its own.

B batch, L length, l queries and m keys of a piece, H query heads, G key/value heads, R = H / G,
K head dim, C devices on the axis.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmjax.parallel.sharding import on_shards, spec, vary

_AXIS = 'context'
_MASKED = -2.0e38


class _Score(NamedTuple):
  """How scores are made; hashable."""

  window: int
  block: int
  scale: float
  softcap: float | None
  dtype: str


class _Keys(NamedTuple):
  """What goes around the ring: two pieces of every row, 0 the early one and 1 the late one."""

  k: jax.Array
  v: jax.Array
  segments: jax.Array

  def piece(self, index: Any) -> '_Keys':
    return _Keys(*(x[index] for x in self))


def attend_ring(
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
  """What `ops.attention.attend_blocked` gives, over a mesh whose `context` axis splits L.

  L must be a multiple of 2 C. Arguments and result are those of `attend_blocked`; `block` is how
  many queries of a piece have their scores in memory at a time.
  """
  score = _Score(window, block, scale, softcap, dtype)
  heads = spec(('batch', 'length', 'heads', None))
  rows = spec(('batch', 'length'))
  run = on_shards(
    functools.partial(_attend_local, score), in_specs=(heads, heads, heads, rows), out_specs=heads
  )
  return run(q_BLHK, k_BLGK, v_BLGK, segments_BL)


def _attend_local(score: _Score, q, k, v, segments) -> jax.Array:
  segments = vary(segments, 'tensor')
  return _from_zigzag(_ring(score, *(_to_zigzag(x) for x in (q, k, v, segments))))


def _to_zigzag(x: jax.Array) -> jax.Array:
  """[B, L / C, ...], a run of every row -> [2, B, L / 2C, ...], its two pieces."""
  first, second = jnp.split(x, 2, axis=1)
  even = jax.lax.ppermute(first, _AXIS, _moves(0))
  odd = jax.lax.ppermute(second, _AXIS, _moves(1))
  is_even = jax.lax.axis_index(_AXIS) % 2 == 0
  return jnp.where(is_even, jnp.stack([even, odd]), jnp.stack([odd, even]))


def _from_zigzag(x: jax.Array) -> jax.Array:
  """The way back from `_to_zigzag`."""
  is_even = jax.lax.axis_index(_AXIS) % 2 == 0
  even, odd = jnp.where(is_even, x[0], x[1]), jnp.where(is_even, x[1], x[0])
  back = lambda x, parity: jax.lax.ppermute(x, _AXIS, [(b, a) for a, b in _moves(parity)])
  return jnp.concatenate([back(even, 0), back(odd, 1)], axis=1)


def _moves(parity: int) -> list[tuple[int, int]]:
  """(source, target) of the piece 2 source + parity, pieces counted from the front of the row."""
  size = _size()
  target = lambda piece: piece if piece < size else 2 * size - 1 - piece
  return [(source, target(2 * source + parity)) for source in range(size)]


def _size() -> int:
  return jax.lax.axis_size(_AXIS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(score: _Score, q, k, v, segments) -> jax.Array:
  return _forward(score, q, k, v, segments)[0]


def _forward(score: _Score, q, k, v, segments):
  """The outputs f32 [2, B, l, H, K], and what the backward pass needs of it."""

  def visit(carry, mine, theirs, keys, places):
    out, lse = carry
    o, o_lse = _attend_piece(score, q[mine], segments[mine], keys.piece(theirs), places)
    both = jnp.logaddexp(lse[mine], o_lse)
    share = lambda some: jnp.exp(some - both)[..., None]
    merged = out[mine] * share(lse[mine]) + o * share(o_lse)
    return out.at[mine].set(merged), lse.at[mine].set(both)

  start = (jnp.zeros_like(q, jnp.float32), jnp.full_like(q[..., 0], _MASKED, jnp.float32))
  out, lse = _round(visit, start, _Keys(k, v, segments))
  return out, (q, k, v, segments, out, lse)


def _backward(score: _Score, residuals, dout):
  q, k, v, segments, out, lse = residuals
  delta = jnp.sum(dout * out, axis=-1)

  def visit(carry, mine, theirs, keys, places):
    dq, dk, dv = carry
    queries = (q[mine], segments[mine], dout[mine], lse[mine], delta[mine])
    by_q, by_k, by_v = _piece_gradients(score, queries, keys.piece(theirs), places)
    return dq.at[mine].add(by_q), dk.at[theirs].add(by_k), dv.at[theirs].add(by_v)

  start = tuple(jnp.zeros_like(x, jnp.float32) for x in (q, k, v))
  dq, dk, dv = _round(visit, start, _Keys(k, v, segments), moving=(1, 2))
  # After C - 1 moves they are with the neighbour of where they belong.
  return dq.astype(q.dtype), _pass_on(dk).astype(k.dtype), _pass_on(dv).astype(v.dtype), None


_ring.defvjp(_forward, _backward)


def _round(visit, carry: tuple, keys: _Keys, moving: tuple[int, ...] = ()) -> tuple:
  """Visits each pair of pieces in which a query may see a key, while keys go around the ring.

  With its own keys a device has three pairs, two of them half masked; with those of each other
  device two that are not: its late queries see their early keys, and if that device comes before
  it its early queries do too, else its late queries see their late keys.

  Args:
    visit: (carry, my piece, their piece, keys, (place of its first query, of its first key)) -> carry.
    moving: items of the carry that go around with the keys.
  """
  size, me = _size(), jax.lax.axis_index(_AXIS)
  length = keys.k.shape[2]
  start = lambda device, piece: jnp.where(piece == 0, device, 2 * size - 1 - device) * length
  see = lambda carry, mine, theirs, keys, other: visit(
    carry, mine, theirs, keys, (start(me, mine), start(other, theirs))
  )
  for mine, theirs in ((0, 0), (1, 1), (1, 0)):
    carry = see(carry, mine, theirs, keys, me)

  def step(state, number):
    carry, keys = state
    keys = _Keys(*(_pass_on(x) for x in keys))
    carry = tuple(_pass_on(x) if i in moving else x for i, x in enumerate(carry))
    other = (me - number) % size
    carry = see(carry, 1, 0, keys, other)
    both = jnp.where(other < me, 0, 1)
    return (see(carry, both, both, keys, other), keys), None

  (carry, _), _ = jax.lax.scan(step, (carry, keys), jnp.arange(1, size))
  return carry


def _attend_piece(score: _Score, q_BlHK, segments_Bl, keys: _Keys, places):
  """Attention of one piece to another: f32 [B, l, H, K], and its logsumexp f32 [B, l, H]."""

  def some(_, queries):
    number, q, segments = queries
    scores_BGRlm, _ = _scores(score, number, q, segments, keys, places)
    lse_BGRl = jax.nn.logsumexp(scores_BGRlm, axis=-1)
    probs_BGRlm = jnp.exp(scores_BGRlm - lse_BGRl[..., None])
    out = _product('BGRLM,BMGK->BLGRK', probs_BGRlm, keys.v, score.dtype)
    return None, (out.reshape(q.shape), _by_head(lse_BGRl))

  _, found = jax.lax.scan(some, None, _blocks(score, q_BlHK, segments_Bl))
  return tuple(_join(x) for x in found)


def _piece_gradients(score: _Score, queries: tuple, keys: _Keys, places):
  """Gradients by queries, keys and values of one pair of pieces, f32 (arXiv:2205.14135 app. B).

  Args:
    queries: q, segments, and of the whole attention the cotangent, the logsumexp and the row sums
      of cotangent x output.
  """
  G = keys.k.shape[2]

  def some(carry, queries):
    dk, dv = carry
    number, q, segments, dout, lse, delta = queries
    scores_BGRlm, slope = _scores(score, number, q, segments, keys, places)
    probs_BGRlm = jnp.exp(scores_BGRlm - _by_group(lse, G)[..., None])
    q_BlGRK, dout_BlGRK = (x.reshape(*x.shape[:2], G, -1, x.shape[-1]) for x in (q, dout))
    dprobs = _product('BLGRK,BMGK->BGRLM', dout_BlGRK, keys.v, score.dtype)
    dscores = probs_BGRlm * (dprobs - _by_group(delta, G)[..., None]) * slope * score.scale
    dq = _product('BGRLM,BMGK->BLGRK', dscores, keys.k, score.dtype).reshape(q.shape)
    dk += _product('BGRLM,BLGRK->BMGK', dscores, q_BlGRK, score.dtype)
    dv += _product('BGRLM,BLGRK->BMGK', probs_BGRlm, dout_BlGRK, score.dtype)
    return (dk, dv), dq

  start = (jnp.zeros_like(keys.k, jnp.float32), jnp.zeros_like(keys.v, jnp.float32))
  (dk, dv), dq = jax.lax.scan(some, start, _blocks(score, *queries))
  return _join(dq), dk, dv


def _scores(score: _Score, number, q_BlHK, segments_Bl, keys: _Keys, places):
  """Masked scores f32 [B, G, R, l, m] of block `number` of a piece, and their slope by the product."""
  B, length, H, K = q_BlHK.shape
  G = keys.k.shape[2]
  q_BlGRK = (q_BlHK * score.scale).reshape(B, length, G, H // G, K)
  scores = _product('BLGRK,BMGK->BGRLM', q_BlGRK, keys.k, score.dtype)
  slope: Any = 1.0
  if score.softcap is not None:
    tanh = jnp.tanh(scores / score.softcap)
    scores, slope = score.softcap * tanh, 1.0 - jnp.square(tanh)
  query_l1 = (places[0] + number * length + jnp.arange(length))[:, None]
  key_1m = (places[1] + jnp.arange(keys.k.shape[1]))[None]
  seen_lm = key_1m <= query_l1
  if score.window:
    seen_lm &= query_l1 - key_1m < score.window
  seen_Blm = (segments_Bl[:, :, None] == keys.segments[:, None]) & seen_lm[None]
  return jnp.where(seen_Blm[:, None, None], scores, _MASKED), slope


def _blocks(score: _Score, *queries: jax.Array):
  """Numbers of the blocks of a piece, and each array [B, l, ...] as [blocks, B, l / blocks, ...]."""
  length = queries[0].shape[1]
  size = score.block if length % score.block == 0 else length
  cut = lambda x: x.reshape(x.shape[0], -1, size, *x.shape[2:]).swapaxes(0, 1)
  return jnp.arange(length // size), *map(cut, queries)


def _join(x: jax.Array) -> jax.Array:
  """The way back from `_blocks`."""
  x = x.swapaxes(0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def _by_head(x_BGRl: jax.Array) -> jax.Array:
  """[B, G, R, l] -> [B, l, H]."""
  B, G, R, length = x_BGRl.shape
  return x_BGRl.transpose(0, 3, 1, 2).reshape(B, length, G * R)


def _by_group(x_BlH: jax.Array, groups: int) -> jax.Array:
  """[B, l, H] -> [B, G, R, l]."""
  B, length, H = x_BlH.shape
  return x_BlH.reshape(B, length, groups, H // groups).transpose(0, 2, 3, 1)


def _product(spec: str, x: jax.Array, y: jax.Array, dtype: str) -> jax.Array:
  """`ops.dot.dot` without a gradient of its own: the one that is here is written out."""
  return jnp.einsum(spec, x.astype(dtype), y.astype(dtype), preferred_element_type=jnp.float32)


def _pass_on(x: jax.Array) -> jax.Array:
  size = _size()
  return jax.lax.ppermute(x, _AXIS, [(i, (i + 1) % size) for i in range(size)])
