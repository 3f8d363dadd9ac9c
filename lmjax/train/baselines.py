"""What simple predictors reach on the same posts: order-0 bytes, LZMA, a Kneser-Ney 5-gram.

Bits per byte counts what a model's does: the code length of every held-out post and of its end,
each post alone, over the UTF-8 bytes of the posts. Knows nothing of models; NumPy only.
"""

import lzma
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np


class Posts(NamedTuple):
  """Posts as tokens and as bytes, in the same order.

  Attributes:
    tokens: int[total] the posts' tokens one after another, without start and end tokens.
    lengths: int[posts] tokens of each post.
    texts: the UTF-8 bytes of each post.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  texts: Sequence[bytes]


def baselines(train: Posts, held_out: Posts, vocab: int) -> dict[str, float]:
  """Bits per byte of held-out posts under predictors that have seen the training posts.

  Args:
    train, held_out: the two parts of a split.
    vocab: number of tokens; the n-gram model spreads its last resort over them and the end.
  """
  size = sum(map(len, held_out.texts))
  bits = {
    'order0': order0_bits(train.texts, held_out.texts),
    'lzma': lzma_bits(train.texts, held_out.texts),
    'kneser_ney': -kneser_ney(train, held_out, vocab).sum(),
  }
  return {name: float(value / size) for name, value in bits.items()}


def order0_bits(train: Sequence[bytes], held_out: Sequence[bytes]) -> float:
  """Code length of bytes and ends under their training frequencies, each counted once more."""
  seen, ours = _byte_counts(train) + 1, _byte_counts(held_out)
  return -float(ours @ np.log2(seen / seen.sum()))


def _byte_counts(texts: Sequence[bytes]) -> np.ndarray:
  """Counts of the 256 bytes, then of the end of a post."""
  stream = np.frombuffer(b''.join(texts), np.uint8)
  return np.append(np.bincount(stream, minlength=256), len(texts))


def lzma_bits(train: Sequence[bytes], held_out: Sequence[bytes]) -> float:
  """Growth of the xz file of the training posts when the held-out ones are added, a post a line."""
  seen = b''.join(text + b'\n' for text in train)
  ours = b''.join(text + b'\n' for text in held_out)
  compress = lambda data: len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
  with ThreadPoolExecutor() as pool:  # xz runs outside the interpreter's lock
    before, after = pool.map(compress, (seen, seen + ours))
  return 8 * (after - before)


def kneser_ney(train: Posts, held_out: Posts, vocab: int, order: int = 5) -> np.ndarray:
  """Kneser & Ney 1995, interpolated with one discount an order as in Chen & Goodman 1999.

    p_n(w | c) = max(k_n(c w) - D_n, 0) / k_n(c .) + D_n N_n(c .) / k_n(c .) p_{n-1}(w | c')

  k_n counts occurrences at the highest order and distinct left neighbours below it, except that
  n-grams at the start of a post, which have none, keep their occurrences. N_n(c .) counts distinct
  words after c, c' is c without its first word, p_0 = 1 / (vocab + 1), D_n = n1 / (n1 + 2 n2),
  where nj n-grams count j. A post's context begins with one start word, so the first words after
  it are predicted from fewer than n - 1.

  Returns:
    f64[held-out tokens + posts] log2 p of each held-out token given its post so far; that of the
    end comes after each post.
  """
  words, places = _concatenate(train, held_out, vocab)
  grams = _rank_grams(words, order)
  is_held_out = np.arange(len(words)) >= len(train.tokens) + 2 * len(train.lengths)
  p = np.full(len(words), 1 / (vocab + 1))
  for n in range(1, order + 1):
    known = places >= max(1, n - 1)  # the word is predicted, and n - 1 words stand before it
    counted = np.flatnonzero(known & ~is_held_out)
    if n < order:
      starts = counted[places[counted] == n - 1]
      longer = counted[places[counted] >= n]
      counted = np.concatenate([starts, longer[_one_of_each(grams[n + 1][longer])]])
    p = np.where(known, _interpolate(grams[n], np.append(0, grams[n - 1][:-1]), counted, p), p)
  return np.log2(p[is_held_out & (places > 0)])


def _interpolate(
  grams: np.ndarray, contexts: np.ndarray, counted: np.ndarray, lower: np.ndarray
) -> np.ndarray:
  """p_n at every position from p_{n-1}, where the n-grams at `counted` count once each."""
  count = lambda numbers: np.bincount(numbers, minlength=len(grams))
  seen = count(grams[counted])
  once, twice = ((seen == times).sum() for times in (1, 2))
  discount = max(once, 1) / max(once + 2 * twice, 2)  # above 0, or an unseen word costs infinity
  total = count(contexts[counted])[contexts]
  kinds = count(contexts[counted[_one_of_each(grams[counted])]])[contexts]
  kept = np.maximum(seen[grams] - discount, 0) + discount * kinds * lower
  return np.where(total > 0, kept / np.maximum(total, 1), lower)


def _one_of_each(grams: np.ndarray) -> np.ndarray:
  """Indices of one occurrence of each distinct number in `grams`."""
  index = np.full(grams.max(initial=-1) + 1, -1)
  index[grams] = np.arange(len(grams))
  return index[index >= 0]


def _concatenate(train: Posts, held_out: Posts, vocab: int) -> tuple[np.ndarray, np.ndarray]:
  """All posts one after another with start and end words, and each word's place in its post."""
  lengths = np.concatenate([train.lengths, held_out.lengths]).astype(np.int64) + 2
  ends = np.cumsum(lengths)
  starts = ends - lengths
  words = np.empty(ends[-1], np.int64)
  inside = np.ones(len(words), bool)
  inside[starts] = inside[ends - 1] = False
  words[inside] = np.concatenate([train.tokens, held_out.tokens])
  words[starts], words[ends - 1] = vocab + 1, vocab
  return words, np.arange(len(words)) - np.repeat(starts, lengths)


def _rank_grams(words: np.ndarray, order: int) -> list[np.ndarray]:
  """grams[n][i]: a number for the n-gram that ends at i, equal where the n-grams are.

  Numbers are ranks, below len(words), so that (context, word) fits an int64 for any vocabulary.
  An n-gram that reaches into the post before holds its end and is equal to none inside a post.
  """
  grams = [np.zeros_like(words), np.unique(words, return_inverse=True)[1]]
  for _ in range(2, order + 1):
    pairs = np.append(0, grams[-1][:-1]) * (grams[1].max() + 1) + grams[1]
    grams.append(np.unique(pairs, return_inverse=True)[1])
  return grams
