"""How likely a model finds continuations of contexts: what several continue is read once.

Contexts go into the cache of keys and values, a batch of like lengths at a time; then each
continuation is read against a copy of its context's rows. Knows nothing about text: token ids in,
nats out. B contexts, R continuations, W context length, C continuation length, V vocab.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.core.types import Params
from lmjax.generate.engine import prefill
from lmjax.generate.score import check_lengths, power_of_two, target_logprobs
from lmjax.models.transformer import Decoder

_TOKENS = 2048  # of a forward pass
_SLOTS = 8192  # of the cache that continuations are read against
_STEP = 32  # lengths are multiples of it, or of an eighth of their power of two
_SHORT = 8  # of continuations


class Pair(NamedTuple):
  """A context of at least one token and what may follow it, of at least one, i32 ids both."""

  context: np.ndarray
  continuation: np.ndarray


class Scores(NamedTuple):
  """Of each pair: log p(continuation | context) in nats, f64, and whether greedy decoding gives it."""

  logprob: np.ndarray
  greedy: np.ndarray


def score_continuations(
  model: Decoder,
  params: Params,
  pairs: Sequence[Pair],
  progress: Callable[[int], None] = lambda done: None,
) -> Scores:
  """Scores every pair, each as if alone.

  Args:
    progress: called after each batch with the number of pairs that are scored.

  Raises:
    UserError: a pair is longer than the positions that the model has learnt.
  """
  check_lengths(model, (len(pair.context) + len(pair.continuation) for pair in pairs))
  shared: dict[bytes, list[int]] = {}
  for index, pair in enumerate(pairs):
    shared.setdefault(np.asarray(pair.context, np.int32).tobytes(), []).append(index)
  # The longest first: of each batch, and so of all but the last, the first says how wide it is.
  groups = sorted(shared.values(), key=lambda group: -len(pairs[group[0]].context))
  scores = Scores(np.zeros(len(pairs)), np.zeros(len(pairs), bool))
  done = 0
  while groups:
    width = padded(len(pairs[groups[0][0]].context), _STEP)
    rows = max(1, _TOKENS // width)
    batch, groups = groups[:rows], groups[rows:]
    _score_batch(model, params, pairs, batch, width, min(rows, power_of_two(len(batch))), scores)
    done += sum(map(len, batch))
    progress(done)
  return scores


def padded(length: int, step: int) -> int:
  """`length` up to a multiple of `step`, of long ones of an eighth of their power of two."""
  step = max(step, power_of_two(length) // 8)
  return -(-length // step) * step


def _score_batch(model, params, pairs, batch, width: int, rows: int, scores: Scores) -> None:
  """Scores the pairs of `batch`, groups that share a context, into `scores`."""
  tokens_BW, lengths_B = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
  members = [(row, index) for row, group in enumerate(batch) for index in group]
  for row, group in enumerate(batch):
    context = pairs[group[0]].context
    tokens_BW[row, : len(context)], lengths_B[row] = context, len(context)
  longer = [(row, index) for row, index in members if len(pairs[index].continuation) > 1]
  longest = max((len(pairs[index].continuation) - 1 for _, index in longer), default=0)
  room = padded(longest, _SHORT) if longest else 0
  slots = min(width + room, model.positions or width + room)
  logits_BV, cache = _read(model, slots, params, tokens_BW, lengths_B)
  logits_BV = np.asarray(logits_BV, np.float64)
  best_B = logits_BV.max(-1)
  norm_B = best_B + np.log(np.exp(logits_BV - best_B[:, None]).sum(-1))
  for row, index in members:
    logit = logits_BV[row, pairs[index].continuation[0]]
    scores.logprob[index], scores.greedy[index] = logit - norm_B[row], logit >= best_B[row]
  longer.sort(key=lambda member: -len(pairs[member[1]].continuation))
  fit = max(1, min(_SLOTS // (width + room), _TOKENS // max(1, room)))
  most = 1 << (fit.bit_length() - 1)
  for first in range(0, len(longer), most):
    _score_rest(model, params, pairs, longer[first : first + most], lengths_B, cache, scores)


def _score_rest(model, params, pairs, members, lengths_B, cache, scores: Scores) -> None:
  """Adds what follows the first token of continuations, the longest of them first."""
  rows, room = (
    power_of_two(len(members)),
    padded(len(pairs[members[0][1]].continuation) - 1, _SHORT),
  )
  tokens_RC, targets_RC = np.zeros((2, rows, room), np.int32)
  sizes_R, row_R, starts_R = np.zeros((3, rows), np.int32)
  for place, (row, index) in enumerate(members):
    ids = pairs[index].continuation
    tokens_RC[place, : len(ids) - 1], targets_RC[place, : len(ids) - 1] = ids[:-1], ids[1:]
    sizes_R[place], row_R[place], starts_R[place] = len(ids) - 1, row, lengths_B[row]
  found = _continue(model, params, cache, row_R, starts_R, sizes_R, tokens_RC, targets_RC)
  logprobs_RC, likeliest_RC = map(np.asarray, found)
  for place, (_, index) in enumerate(members):
    scores.logprob[index] += logprobs_RC[place, : sizes_R[place]].sum(dtype=np.float64)
    scores.greedy[index] &= likeliest_RC[place, : sizes_R[place]].all()


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read(model: Decoder, slots: int, params, tokens_BW, lengths_B):
  return prefill(model, params, tokens_BW, lengths_B, slots)


@functools.partial(jax.jit, static_argnums=0)
def _continue(model: Decoder, params, cache, row_R, starts_R, sizes_R, tokens_RC, targets_RC):
  """`target_logprobs` of tokens that follow row `row_R` of the cache, from `starts_R` on."""
  axis = 1 if model.layout == 'scan' else 0
  cache = jax.tree.map(lambda x: jnp.take(x, row_R, axis=axis), cache)
  places_1C = jnp.arange(tokens_RC.shape[1])[None]
  segments_RC = (places_1C < sizes_R[:, None]).astype(jnp.int32)
  positions_RC = starts_R[:, None] + places_1C
  hidden_RCD = model.apply(params, tokens_RC, segments_RC, positions_RC, cache).hidden_BLD
  return target_logprobs(model, params, hidden_RCD, targets_RC)
