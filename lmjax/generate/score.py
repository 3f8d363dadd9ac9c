"""How likely a model finds given tokens: many texts at a time, packed into rows of one shape.

Knows nothing about text: token ids in, nats out. B rows, L length, V vocab.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.core.errors import UserError
from lmjax.core.types import Params
from lmjax.data import packing
from lmjax.models.transformer import Decoder
from lmjax.ops.loss import target_logits

_LENGTH = 256  # of a row; longer texts get rows of 512, 1,024 and so on
_TOKENS = 2048  # of a forward pass
_CHUNK = 256  # positions whose logits exist at a time
_BLOCK = 64  # queries at a time: of short texts packed into a row most pairs are masked


def score(model: Decoder, params: Params, texts: Sequence[np.ndarray]) -> np.ndarray:
  """log p(tokens after the first | those before), f64 nats [texts], each text alone.

  Args:
    texts: i32 token ids each; one of fewer than two has nothing to score, and 0.

  Raises:
    UserError: a text is longer than the positions that the model has learnt.
  """
  check_lengths(model, (len(text) for text in texts))
  model = dataclasses.replace(model, attention_block=_BLOCK)
  sums = np.zeros(len(texts))
  predictions = np.array([max(len(text) - 1, 0) for text in texts], int)
  # A row is at least as long as its longest text, and lengths are few, so that few programs compile.
  doublings = np.ceil(np.log2(np.maximum(predictions / _LENGTH, 1))).astype(int)
  for doubling in np.unique(doublings[predictions > 0]):
    chosen = np.flatnonzero((doublings == doubling) & (predictions > 0))
    sums[chosen] = _score_rows(
      model, params, [texts[index] for index in chosen.tolist()], _LENGTH * 2 ** int(doubling)
    )
  return sums


def check_lengths(model: Decoder, lengths: Iterable[int]) -> None:
  """UserError where a text of so many tokens has more to predict from than the model has positions."""
  longest = max(lengths, default=0)
  if model.positions is not None and longest - 1 > model.positions:
    raise UserError(
      f'a text of {longest} tokens is longer than the {model.positions} positions that the '
      'model has: shorten it'
    )


def _score_rows(
  model: Decoder, params: Params, texts: Sequence[np.ndarray], length: int
) -> np.ndarray:
  """`score` of texts that fit into rows of `length`."""
  most = max(1, _TOKENS // length)
  # `plan` counts one prediction more than tokens; here the first token is given.
  pieces = packing.plan(np.array([len(text) - 2 for text in texts]), length, 'best_fit')
  sums = np.zeros(len(texts))
  count = int(pieces.row[-1]) + 1
  for first in range(0, count, most):
    rows = min(most, power_of_two(count - first))
    mine = pieces.take((pieces.row >= first) & (pieces.row < first + rows))
    tokens, targets, segments, positions = np.zeros((4, rows, length), np.int32)
    places = []
    filled = np.zeros(rows, int)
    for number, (row, text) in enumerate(zip(mine.row - first, mine.post, strict=True), 1):
      ids = texts[text]
      place = (row, slice(filled[row], filled[row] + len(ids) - 1))
      tokens[place], targets[place] = ids[:-1], ids[1:]
      segments[place], positions[place] = number, np.arange(len(ids) - 1)
      filled[row] += len(ids) - 1
      places.append((text, place))
    logprobs_BL = np.asarray(_logprobs(model, params, tokens, targets, segments, positions)[0])
    for text, place in places:
      sums[text] = logprobs_BL[place].sum(dtype=np.float64)
  return sums


@functools.partial(jax.jit, static_argnums=0)
def _logprobs(model, params, tokens_BL, targets_BL, segments_BL, positions_BL):
  """`target_logprobs` of packed rows."""
  hidden_BLD = model.apply(params, tokens_BL, segments_BL, positions_BL).hidden_BLD
  return target_logprobs(model, params, hidden_BLD, targets_BL)


def target_logprobs(model: Decoder, params: Params, hidden_BLD, targets_BL):
  """f32 log p of every target, and whether it is the likeliest token; a chunk of positions at a time."""
  head = model.head_params(params)

  def some(chunk):
    hidden_1CD, targets_1C = (x[None] for x in chunk)
    logits_1CV = model.logits(head, hidden_1CD)
    logits_1C = target_logits(logits_1CV, targets_1C)
    likeliest_1C = logits_1C >= jnp.max(logits_1CV, axis=-1)
    return (logits_1C - jax.nn.logsumexp(logits_1CV, axis=-1))[0], likeliest_1C[0]

  size = math.gcd(_CHUNK, targets_BL.size)
  cut = lambda x: x.reshape(-1, size, *x.shape[2:])
  logprobs, likeliest = jax.lax.map(some, (cut(hidden_BLD), cut(targets_BL)))
  return logprobs.reshape(targets_BL.shape), likeliest.reshape(targets_BL.shape)


def power_of_two(number: int) -> int:
  """The next power of two, so that few counts of rows compile."""
  return 1 << max(0, number - 1).bit_length()
