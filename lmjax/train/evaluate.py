"""Bits per byte of posts under a model, each post alone and never truncated. L row length."""

import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.core.types import Batch, Params
from lmjax.data import packing
from lmjax.data.packing import Pieces
from lmjax.data.split import strip_urls
from lmjax.data.tokenizer import Tokenizer
from lmjax.models.transformer import Decoder
from lmjax.objectives.language import Language
from lmjax.train.feed import place
from lmjax.train.state import batch_sharding


class Evaluator:
  """Scores posts in packed rows: attention never crosses posts, so each is scored alone.

  Args:
    batch, length: shape of a forward pass; posts longer than `length` get rows of twice that, four
      times that and so on.
  """

  def __init__(
    self, model: Decoder, tokenizer: Tokenizer, mesh: jax.sharding.Mesh, *, batch: int, length: int
  ) -> None:
    self._tokenizer, self._mesh = tokenizer, mesh
    self._batch, self._length = batch, length
    objective = Language()
    key = jax.random.key(0)
    self._nats = jax.jit(
      lambda params, rows: objective(model, params, rows, key)[1]['loss'].total,
      out_shardings=NamedSharding(mesh, PartitionSpec()),
    )

  def bits_per_byte(self, params: Params, posts: Sequence[np.ndarray]) -> float:
    """-log2 p of every token and end of `posts` (token ids without start and end), over their bytes."""
    size = sum(len(self._tokenizer.decode(post)) for post in posts)
    with jax.set_mesh(self._mesh):
      nats = [self._nats(params, rows) for rows in self._rows(posts)]
    return sum(map(float, nats)) / math.log(2) / max(1, size)

  def bits_per_byte_without_urls(self, params: Params, posts: Sequence[np.ndarray]) -> float:
    """The same of the posts' texts with URLs taken out; posts that were nothing else do not count."""
    texts = [strip_urls(self._tokenizer.text(post)) for post in posts]
    return self.bits_per_byte(
      params, self._tokenizer.encode_batch([text for text in texts if text])
    )

  def _rows(self, posts: Sequence[np.ndarray]) -> Iterator[Batch]:
    """Batches of one shape for each row length, the last one filled up with padding."""
    needed = np.array([len(post) + 1 for post in posts])
    # A multiple of `length` divides over every mesh that it does.
    doublings = np.ceil(np.log2(np.maximum(needed / self._length, 1))).astype(int)
    lengths = self._length * 2**doublings
    for length in np.unique(lengths).tolist():
      chosen = [post for post, its in zip(posts, lengths, strict=True) if its == length]
      yield from self._batches(chosen, length)

  def _batches(self, posts: Sequence[np.ndarray], length: int) -> Iterator[Batch]:
    pieces = packing.plan(np.array([len(post) for post in posts]), length, 'best_fit')
    sharding = batch_sharding(self._mesh)
    for first in range(0, int(pieces.row[-1]) + 1, self._batch):
      mine: Pieces = pieces.take((pieces.row >= first) & (pieces.row < first + self._batch))
      mine = mine._replace(row=mine.row - first)
      tokens = [posts[post] for post in mine.post]
      ends = {'start': self._tokenizer.start, 'end': self._tokenizer.end}
      rows = packing.fill(mine, tokens, self._batch, length, **ends)
      yield place(rows, sharding, self._batch)
