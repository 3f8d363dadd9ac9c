"""How likely a model finds given tokens: many texts at a time, packed into rows of one shape.

Knows nothing about text: token ids in, nats out. B rows, L length, V vocab.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from lmjax.core.errors import UserError
from lmjax.core.types import Params
from lmjax.data import packing
from lmjax.models.transformer import Decoder
from lmjax.ops.loss import target_logits

_LENGTH = 256  # of a row; longer texts get rows of 512, 1,024 and so on
_TOKENS = 2048  # of a forward pass
_CHUNK = 256  # positions whose logits exist at a time


def score(model: Decoder, params: Params, texts: Sequence[np.ndarray]) -> np.ndarray:
  """log p(tokens after the first | those before), f64 nats [texts], each text alone.

  Args:
    texts: i32 token ids each; one of fewer than two has nothing to score, and 0.

  Raises:
    UserError: a text is longer than the positions that the model has learnt.
  """
  longest = max((len(text) - 1 for text in texts), default=0)
  if model.positions is not None and longest > model.positions:
    raise UserError(
      f'a text of {longest + 1} tokens is longer than the {model.positions} positions that the '
      'model has: shorten it'
    )
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


def _score_rows(
  model: Decoder, params: Params, texts: Sequence[np.ndarray], length: int
) -> np.ndarray:
  """`score` of texts that fit into rows of `length`."""
  rows = max(1, _TOKENS // length)
  # `plan` counts one prediction more than tokens; here the first token is given.
  pieces = packing.plan(np.array([len(text) - 2 for text in texts]), length, 'best_fit')
  sums = np.zeros(len(texts))
  for first in range(0, int(pieces.row[-1]) + 1, rows):
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
    logprobs_BL = np.asarray(_logprobs(model, params, tokens, targets, segments, positions))
    for text, place in places:
      sums[text] = logprobs_BL[place].sum(dtype=np.float64)
  return sums


@functools.partial(jax.jit, static_argnums=0)
def _logprobs(model, params, tokens_BL, targets_BL, segments_BL, positions_BL) -> jax.Array:
  """f32 log p of every target, a chunk of positions at a time."""
  hidden_BLD = model.apply(params, tokens_BL, segments_BL, positions_BL).hidden_BLD
  head = model.head_params(params)

  def some(chunk):
    hidden_1CD, targets_1C = (x[None] for x in chunk)
    logits_1CV = model.logits(head, hidden_1CD)
    return (target_logits(logits_1CV, targets_1C) - jax.nn.logsumexp(logits_1CV, axis=-1))[0]

  cut = lambda x: x.reshape(-1, _CHUNK, *x.shape[2:])
  return jax.lax.map(some, (cut(hidden_BLD), cut(targets_BL))).reshape(targets_BL.shape)
