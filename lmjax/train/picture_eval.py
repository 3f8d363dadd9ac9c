"""Whether pictures show what was asked for: the nearest real picture, and judges of category and skin tone.

The judges learn from real pictures alone, none of a concept that a generator has not seen. S generated or
real pictures, u8 [S, H, W, 3].
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lmjax.data.images import Picture

_LEVELS = 8  # of each colour in a histogram
_RIDGE = 1e-3
_BLOCK = 256


def nearest(pixels: np.ndarray, real: np.ndarray) -> np.ndarray:
  """i64 [S]: which of the real pictures differs least, by the sum of squares."""
  flat = lambda some: some.reshape(len(some), -1).astype('f4') / 255
  there = flat(real)
  size = np.square(there).sum(axis=1)
  some = flat(pixels)
  blocks = [some[i : i + _BLOCK] for i in range(0, len(some), _BLOCK)]
  return np.concatenate([np.argmin(size - 2 * block @ there.T, axis=1) for block in blocks])


class Judges(NamedTuple):
  """Category by the nearest picture learnt from, tone by a linear model of a histogram of colours."""

  pixels: np.ndarray
  categories: list[str]
  tones: list[str]
  weights: np.ndarray

  def category(self, pixels: np.ndarray) -> list[str]:
    return [self.categories[i] for i in nearest(pixels, self.pixels)]

  def tone(self, pixels: np.ndarray) -> list[str]:
    return [self.tones[i] for i in np.argmax(_histogram(pixels) @ self.weights, axis=1)]


def train_judges(shown: Sequence[Picture], pixels: np.ndarray) -> Judges:
  """From real pictures; tones are those that these have, at least one."""
  tones = sorted({one.tone for one in shown if one.tone}) or ['']
  rows = [i for i, one in enumerate(shown) if one.tone in tones]
  x = _histogram(pixels[rows])
  y = np.array([[float(shown[i].tone == tone) for tone in tones] for i in rows])
  weights = np.linalg.solve(x.T @ x + _RIDGE * len(rows) * np.eye(x.shape[1]), x.T @ y)
  return Judges(pixels, [one.category for one in shown], tones, weights)


def _histogram(pixels: np.ndarray) -> np.ndarray:
  """f64 [S, 513]: roots of the shares of coarse colours, and a constant."""
  levels = pixels.reshape(len(pixels), -1, 3).astype('i8') * _LEVELS // 256
  bins = levels @ np.array([_LEVELS**2, _LEVELS, 1])
  counts = np.stack([np.bincount(row, minlength=_LEVELS**3) for row in bins])
  return np.hstack([np.sqrt(counts / bins.shape[1]), np.ones((len(pixels), 1))])


def measure(
  made: np.ndarray,
  asked: Sequence[int],
  shown: Sequence[Picture],
  real: np.ndarray,
  judges: Judges,
) -> dict[str, float | None]:
  """How often the picture made for number `asked` of all those `shown` is like it.

  Returns:
    nearest: the nearest of all real pictures is the one asked for.
    tone: the judge sees the tone asked for, of those that have one; None where none has.
    category: the judge sees the category asked for.
  """
  right = nearest(made, real) == np.asarray(asked)
  category = [a == shown[i].category for a, i in zip(judges.category(made), asked, strict=True)]
  tone = [
    a == shown[i].tone for a, i in zip(judges.tone(made), asked, strict=True) if shown[i].tone
  ]
  mean = lambda values: float(np.mean(values)) if len(values) else None
  return {'nearest': mean(right), 'tone': mean(tone), 'category': mean(category)}


def most_alike(
  told: tuple[np.ndarray, np.ndarray], known: tuple[np.ndarray, np.ndarray], size: int
) -> np.ndarray:
  """i64 [S]: which known prompt is most like each, by the cosine of features: what retrieval shows.

  Args:
    told, known: features and weights, `images.encode_prompts`.
    size: features there are.
  """
  dense = lambda pair: _dense(pair[0], pair[1], size)
  there = dense(known)
  return np.concatenate([np.argmax(dense((f, w)) @ there.T, axis=1) for f, w in _blocks(*told)])


def _dense(features: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
  rows = np.zeros((len(features), size), np.float32)
  np.add.at(rows, (np.arange(len(features))[:, None], features), weights)
  return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _blocks(features: np.ndarray, weights: np.ndarray) -> list[Any]:
  return [
    (features[i : i + _BLOCK], weights[i : i + _BLOCK]) for i in range(0, len(features), _BLOCK)
  ]
