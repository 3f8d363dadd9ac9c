"""A first token table and head that already predict as the bigrams of the posts do.

What a block adds to the residual stream is zero at the start, so a fresh decoder is a log-bilinear bigram
model: logits = head . norm(embed[token]). Instead of learning that in its first hundred steps it starts
close to the best one of its width: the bigrams' log-probabilities, smoothed as Kneser and Ney did (1995),
are a sparse matrix (what was seen) plus functions of one token alone, and the sparse part is factored by
a randomised SVD (Halko et al. 2011, arXiv:0909.4061), as word vectors are (Levy and Goldberg 2014).

V vocab, D width, P distinct pairs, K = D - 1 directions; the last one is for the next token alone.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from lmjax.models.transformer import Decoder
from lmjax.parallel import hosts
from lmjax.train.state import TrainState

if TYPE_CHECKING:
  from scipy import sparse

_TOKENS = 20_000_000  # counted at most: posts stand in a random order
_DISCOUNT = 0.75
_OVERSAMPLED = 16
_POWERS = 2
_STD = 0.1  # of the token table, whose rows the model may normalise


def begin(
  state: TrainState,
  posts: Iterable[np.ndarray],
  marks: tuple[int, int],
  model: Decoder,
  seed: int,
) -> TrainState:
  """`state` with such a table and head, each on its shards; the rest as in `ends`."""
  assert model.vocab is not None
  hosts.say('counting bigrams ...')
  table_VD, head_DV = ends(posts, marks, (model.vocab, model.width), seed)
  hosts.check_equal(
    'the bigrams',
    hashlib.sha256(table_VD.tobytes() + head_DV.tobytes()).hexdigest(),
    'use one kind of machine, or pass --start=random',
  )

  def on_shards(old: jax.Array, new: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(old.shape, old.sharding, lambda part: new[part])

  params = {
    **state.params,
    'embed': on_shards(state.params['embed'], table_VD * _STD),
    'head': on_shards(state.params['head'], head_DV / model.logit_scale),
  }
  return state.replace(params=params)  # type: ignore[attr-defined]


def ends(
  posts: Iterable[np.ndarray], marks: tuple[int, int], shape: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """The token table f32 [V, D], of rows with a root mean square of 1, and the head f32 [D, V].

  Args:
    posts: token ids of each post, without its start and end.
    marks: the tokens before and behind every post.
    shape: V and D.
    seed: of the directions, which are turned at random so that no coordinate stands out.
  """
  from scipy import sparse  # here: it takes 0.1 s, which other starts need not wait

  V, D = shape
  a_P, b_P, gain_P, base_V, seen_V = _bigrams(_stream(posts, marks), marks[1], V)
  each_V, next_V = _shares(seen_V, 1.0), _shares(np.bincount(b_P, minlength=V), 0.5)
  # Weighted by how often a token comes: errors cost as much as they do in the loss, to second order.
  rows_V, columns_V = np.sqrt(each_V), np.sqrt(next_V)
  weighted = (gain_P * rows_V[a_P] * columns_V[b_P]).astype(np.float32)
  rng = np.random.default_rng(seed)
  left_VK, right_VK = _factor(sparse.csr_array((weighted, (a_P, b_P)), shape=(V, V)), D - 1, rng)
  left_VK, right_VK = left_VK / rows_V[:, None], right_VK / columns_V[:, None]
  # Rows are normalised in the model: beside a constant as long as they are, that changes little.
  squares_V = np.square(left_VK).sum(1)
  constant = np.sqrt(each_V @ squares_V)
  norms_V = np.sqrt(squares_V + constant**2)
  typical = np.sqrt(each_V @ np.square(norms_V))
  table_VD = np.column_stack([left_VK, np.full(V, constant)]) / norms_V[:, None]
  head_VD = np.column_stack([right_VK, base_V / constant]) * typical
  turn_DD = np.linalg.qr(rng.standard_normal((D, D)))[0]
  scale = np.sqrt(D)
  turned = lambda x_VD: (x_VD @ turn_DD).astype(np.float32)
  return turned(table_VD * scale), turned(head_VD / scale).T


def _stream(posts: Iterable[np.ndarray], marks: tuple[int, int]) -> np.ndarray:
  """The posts one after another, each between its marks, i64."""
  found: list[Sequence[int] | np.ndarray] = []
  size = 0
  for post in posts:
    found += [marks[:1], post, marks[1:]]
    size += len(post) + 2
    if size >= _TOKENS:
      break
  return np.concatenate(found).astype(np.int64)


def _bigrams(tokens: np.ndarray, end: int, V: int) -> tuple[np.ndarray, ...]:
  """a_P, b_P, gain_P, base_V, seen_V: log p(b | a) = gain + base[b] + a function of a alone."""
  a, b = tokens[:-1], tokens[1:]
  within = a != end
  pairs, count_P = np.unique(a[within] * V + b[within], return_counts=True)
  a_P, b_P = np.divmod(pairs, V)
  seen_V = np.bincount(a_P, count_P, V)
  after_V = _shares(np.bincount(b_P, minlength=V), 0.1)
  left_over_P = (_DISCOUNT * np.bincount(a_P, minlength=V) / np.maximum(seen_V, 1))[a_P]
  gain_P = np.log1p((count_P - _DISCOUNT) / seen_V[a_P] / (left_over_P * after_V[b_P]))
  return a_P, b_P, gain_P, np.log(after_V), seen_V


def _shares(count_V: np.ndarray, more: float) -> np.ndarray:
  return (count_V + more) / (count_V + more).sum()


def _factor(
  matrix: 'sparse.csr_array', rank: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """left [V, rank] and right [V, rank] of the best left . right^T, both as long."""
  V, _ = matrix.shape  # type: ignore[misc]
  width = min(rank + _OVERSAMPLED, V)
  across = matrix.T.tocsr()
  basis = rng.standard_normal((V, width)).astype(np.float32)
  for _ in range(_POWERS):
    basis = np.linalg.qr(across @ (matrix @ basis))[0]
  image = matrix @ basis
  values, vectors = np.linalg.eigh(image.T @ image)
  values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
  root = np.maximum(values, np.finfo(np.float32).tiny) ** 0.25
  left, right = image @ vectors / root, basis @ vectors * root
  missing = ((0, 0), (0, rank - left.shape[1]))
  return np.pad(left, missing), np.pad(right, missing)
