"""Generation with a key/value cache: one prefill, then one token at a time, all in one jit.

Knows nothing about text: token ids in, token ids out. B batch, L prompt length, M cache slots.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.core.types import Params
from lmjax.generate.sampler import Sampler, row_keys
from lmjax.models.transformer import Decoder

# Prompts, and what may follow them, are padded to a multiple of it, so that few lengths compile.
_BUCKET = 32
# Of a prompt, queries at a time against the keys up to theirs: few enough that little of the scores is
# masked, and blocks so few that they compile fast.
_QUERIES, _BLOCKS = 128, 8


def generate(
  model: Decoder,
  params: Params,
  prompts: Sequence[np.ndarray],
  *,
  sampler: Sampler,
  max_tokens: int,
  end: int,
  vocab: int,
  seed: int,
) -> list[np.ndarray]:
  """Continues every prompt until its end token or `max_tokens`.

  Args:
    model, params: from `prepare`, which is fastest, or as they were trained.
    prompts: i32 token ids each, at least one (the start token).
    max_tokens: tokens to add to each prompt at most.
    end: the token that ends a row.
    vocab: ids from here on are padding of the model's table and are never drawn.
    seed: the draw of row b at position p uses fold_in(fold_in(key(seed), b), p).

  Returns:
    The new tokens of every row, without the end token.
  """
  lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
  width, room = _whole_buckets(int(lengths_B.max())), _whole_buckets(max_tokens)
  tokens_BL = np.zeros((len(prompts), width), np.int32)
  for row, prompt in enumerate(prompts):
    tokens_BL[row, : len(prompt)] = prompt
  key = jax.random.key(seed)
  new_BM = np.asarray(
    _generate(model, sampler, room, end, vocab, params, tokens_BL, lengths_B, max_tokens, key)
  )[:, :max_tokens]
  stops = [np.flatnonzero(row == end) for row in new_BM]
  return [row[: stop[0]] if len(stop) else row for row, stop in zip(new_BM, stops, strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _generate(model, sampler, room, end, vocab, params, tokens_BL, lengths_B, max_tokens, seed):
  """i32 [B, room]: the new tokens of every row, of which at most `max_tokens` <= room are drawn."""
  B, L = tokens_BL.shape
  rows_B = jnp.arange(B)
  logits_BV, cache = prefill(model, params, tokens_BL, lengths_B, L + room)
  draw = lambda logits_BV, places_B: sampler(logits_BV[:, :vocab], row_keys(seed, rows_B, places_B))

  def more(carry):
    i, _, _, _, ended_B = carry
    return (i < max_tokens) & ~jnp.all(ended_B)

  def put(i, logits_BV, cache, new_BM, ended_B):
    token_B = jnp.where(ended_B, end, draw(logits_BV, lengths_B + i))
    return i + 1, token_B, cache, new_BM.at[:, i].set(token_B), ended_B | (token_B == end)

  def step(carry):
    i, token_B, cache, new_BM, ended_B = carry
    logits_BV, cache = decode(model, params, token_B, lengths_B + i - 1, cache)
    return put(i, logits_BV, cache, new_BM, ended_B)

  none_BM, ended_B = jnp.full((B, room), end, jnp.int32), jnp.zeros(B, bool)
  return jax.lax.while_loop(more, step, put(0, logits_BV, cache, none_BM, ended_B))[3]


def _whole_buckets(tokens: int) -> int:
  return -(-tokens // _BUCKET) * _BUCKET


def prefill(model: Decoder, params: Params, tokens_BL, lengths_B, slots: int):
  """Logits f32 [B, V] after each prompt's last token, and the cache with the prompts in it.

  `slots`: of the cache, enough for the longest prompt; padding beyond them is dropped.
  """
  B, L = tokens_BL.shape
  real_BL = jnp.arange(L)[None] < lengths_B[:, None]
  segments_BL = real_BL.astype(jnp.int32)
  # Padding past the learnt positions would be NaN, which no mask keeps from the rest.
  positions_BL = jnp.where(real_BL, jnp.arange(L)[None], 0)
  cache = model.init_cache(B, slots)
  empty = jax.tree.map(lambda x: x[..., :0, :, :], cache)
  block = max(_QUERIES, -(-L // _BLOCKS))
  reader = dataclasses.replace(model, attention='blocked', attention_block=block)
  output = reader.apply(params, tokens_BL, segments_BL, positions_BL, empty)
  last_B1D = jnp.take_along_axis(output.hidden_BLD, (lengths_B - 1)[:, None, None], axis=1)
  put = lambda x, new: x.at[..., :L, :, :].set(new[..., :slots, :, :])
  return model.logits(params, last_B1D)[:, 0], jax.tree.map(put, cache, output.cache)


def decode(model: Decoder, params: Params, token_B, position_B, cache):
  """Logits f32 [B, V] after one more token of every row, and the cache with it written."""
  ones_B1 = jnp.ones((token_B.shape[0], 1), jnp.int32)
  output = model.apply(params, token_B[:, None], ones_B1, position_B[:, None], cache)
  return model.logits(params, output.hidden_BLD)[:, 0], output.cache
