"""A linear classifier of texts over hashed n-grams of words and characters.

Knows nothing about what the classes mean. S texts, N n-grams of all texts, F buckets.
"""

import html
import itertools
import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.core.config import Config, leaf

_PRIME = 1_099_511_628_211  # FNV's; products wrap at 64 bits


class Ngrams(NamedTuple):
  """The n-grams of S texts, a bucket once a text.

  Attributes:
    rows_N: i32, the text of each, ascending.
    buckets_N: i32, below F.
    values_N: f32, counts or tf-idf.
    size: S.
  """

  rows_N: np.ndarray
  buckets_N: np.ndarray
  values_N: np.ndarray
  size: int


class NgramHash(Config):
  """How texts become n-grams in buckets."""

  buckets: int = leaf(2**18, 'Buckets F that n-grams are hashed to.', low=2)
  words: int = leaf(2, 'The longest n-gram of words.', low=1, high=5)
  shortest: int = leaf(2, 'The shortest n-gram of characters.', low=1, high=8)
  longest: int = leaf(5, 'The longest n-gram of characters.', low=1, high=8)

  def count(self, texts: Sequence[str]) -> Ngrams:
    """Values are 1 + log(how often an n-gram is in its text)."""
    counted = [np.unique(self._hash(text), return_counts=True) for text in texts]
    rows = np.repeat(np.arange(len(texts)), [len(buckets) for buckets, _ in counted])
    buckets, times = (np.concatenate(part) for part in zip(*counted, strict=True))
    values = 1 + np.log(times)
    return Ngrams(rows.astype('i4'), buckets.astype('i4'), values.astype('f4'), len(texts))

  def _hash(self, text: str) -> np.ndarray:
    text = re.sub(r'https?://\S+', 'http', html.unescape(text).lower())
    text = re.sub(r'@\w+', '@', text)
    words = re.findall(r"[\w']+|[^\w\s]", text)
    grams = itertools.chain.from_iterable(
      (' '.join(words[i : i + n]) for i in range(len(words) - n + 1))
      for n in range(1, self.words + 1)
    )
    hashed = [np.array([zlib.crc32(gram.encode()) for gram in grams], np.uint64)]
    letters = np.array([ord(one) for one in f' {" ".join(words)} '], np.uint64)
    for n in range(self.shortest, min(self.longest, len(letters)) + 1):
      value = np.full(len(letters) - n + 1, n, np.uint64)
      for i in range(n):
        value = (value ^ letters[i : len(letters) - n + 1 + i]) * np.uint64(_PRIME)
      hashed.append(value ^ (value >> np.uint64(29)))
    return np.concatenate(hashed) % np.uint64(self.buckets)


def inverse_frequency(counts: Ngrams, buckets: int) -> np.ndarray:
  """f32 [F]: log((1 + S) / (1 + texts that hold it)) + 1."""
  holding = np.bincount(counts.buckets_N, minlength=buckets)
  return (np.log((1 + counts.size) / (1 + holding)) + 1).astype('f4')


def weigh(counts: Ngrams, idf_F: np.ndarray) -> Ngrams:
  """tf-idf, each text of length 1."""
  values = counts.values_N * idf_F[counts.buckets_N]
  lengths = np.sqrt(np.bincount(counts.rows_N, values**2, minlength=counts.size))
  return counts._replace(values_N=(values / lengths[counts.rows_N]).astype('f4'))


def linear_logits(
  weights_F: jax.Array, bias: jax.Array, rows_N: Any, buckets_N: Any, values_N: Any, size: int
) -> jax.Array:
  """f32 [S]: bias + the sum of values * weights over each text's n-grams."""
  terms_N = values_N * weights_F[jnp.asarray(buckets_N)]
  return bias + jax.ops.segment_sum(terms_N, jnp.asarray(rows_N), size, indices_are_sorted=True)
