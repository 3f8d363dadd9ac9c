"""What makes a document come first: scores of words and of meaning, weighed as queries taught.

Q queries, C candidates of each, F features, D size of a vector, S texts.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.core.errors import UserError
from lmjax.core.task import write_json
from lmjax.data.shuffle import permutation

SHIPPED = Path(__file__).with_name('ranking.json')
FEATURES = ('words', 'words_rank', 'meaning', 'meaning_rank')
READ = (
  'coverage',  # share of the query's words that a document has, by how rare they are
  'title_coverage',  # the same of its title
  'title_asked',  # share of the title's words that the query has
  'pairs',  # share of the query's neighbouring words that are neighbours in the document
  'title_meaning',  # cosine of the title with the query
  'late_interaction',
)
CROSS = 'cross'  # the score of a query and a document read together (`cross.py`)
READ_WITH_CROSS = (*FEATURES, *READ, CROSS)
METHODS = ('bm25', 'dense', 'hybrid', 'reranked')
POOL = 100  # candidates that each of words and meaning gives
_RANK = 10.0  # what a rank is counted from: place r counts 1 / (1 + r / _RANK)


class Ranking(NamedTuple):
  """Learnt numbers.

  Attributes:
    k1, b: of BM25.
    hybrid: weight of each of FEATURES.
    reranked: of these and of READ, what reading the first documents again says (`reading.py`).
    cross: of these and of CROSS, which orders the first of these again where somebody is asked for it.
    trained_on: which queries they were learnt from.
  """

  k1: float
  b: float
  hybrid: Mapping[str, float]
  reranked: Mapping[str, float]
  cross: Mapping[str, float]
  trained_on: str

  def save(self, path: Path) -> None:
    write_json(path, self._asdict())


def load_ranking(path: Path = SHIPPED) -> Ranking:
  """UserError where `path` is no such file."""
  try:
    said = json.loads(path.read_text(encoding='utf-8'))
    found = Ranking(**said)
    features = (FEATURES, (*FEATURES, *READ), READ_WITH_CROSS)
    weights = (found.hybrid, found.reranked, found.cross)
    if any(list(names) != list(own) for names, own in zip(features, weights, strict=True)):
      raise ValueError('its features are of another version')
    return found
  except (OSError, ValueError, TypeError) as error:
    raise UserError(f'{path} holds no ranking ({error}): run search_tune again') from None


class Candidates(NamedTuple):
  """What may answer one query.

  Attributes:
    documents: i64 [C] their indices.
    features: f32 [C, F], in the order of FEATURES and, where it was read again, READ, and CROSS.
  """

  documents: np.ndarray
  features: np.ndarray


def candidates(words: np.ndarray, meaning: np.ndarray) -> Candidates:
  """The first POOL by each score, with their features.

  Args:
    words, meaning: f32 scores of all documents, by BM25 and by cosine.
  """
  both = (words / max(float(words.max(initial=0.0)), 1e-9), meaning)
  firsts = [top(scores, POOL) for scores in both]
  chosen = np.unique(np.concatenate(firsts))
  places = [np.searchsorted(chosen, first) for first in firsts]
  return Candidates(chosen, features([scores[chosen] for scores in both], places))


def features(scores: Sequence[np.ndarray], firsts: Sequence[np.ndarray]) -> np.ndarray:
  """f32 [C, F] of candidates: by words and by meaning, the score and the place.

  Args:
    scores: f32 [C] of words (1 = the best there is) and of meaning.
    firsts: of both, which candidates come first, in order.
  """
  found = np.zeros((len(scores[0]), len(FEATURES)), np.float32)
  for column, (own, first) in enumerate(zip(scores, firsts, strict=True)):
    found[:, 2 * column] = own
    better = np.searchsorted(-own[first], -own[first])  # equal ones share a place
    # A document without any of the words has no place among words.
    counted = (own[first] > 0).astype(np.float32)
    found[first, 2 * column + 1] = counted / (1 + better / _RANK)
  return found


def top(scores: np.ndarray, count: int) -> np.ndarray:
  """Indices of the `count` largest, in order.

  Equal ones come in an order of their own: sets of documents have near-copies which words cannot
  tell apart, and where the judged one stands first in its file, the file's order would be an answer.
  """
  count = min(count, len(scores))
  some = np.argpartition(-scores, count - 1)[:count] if count < len(scores) else np.arange(count)
  return some[np.lexsort((_shuffled(len(scores))[some], -scores[some]))]


@functools.lru_cache(256)
def _shuffled(count: int) -> np.ndarray:
  return permutation(count, 'equal scores')


def weigh(found: Candidates, weights: Mapping[str, float]) -> np.ndarray:
  """f32 [C]: the weighted sum of features."""
  return found.features[:, : len(weights)] @ np.array(list(weights.values()), np.float32)


def learn_weights(
  names: Sequence[str], found: Sequence[Candidates], relevant: Sequence[set[int]]
) -> dict[str, float]:
  """Weights under which relevant documents are likeliest to come first.

  Minimises -log softmax(features w)[relevant], the mean over queries that have a relevant candidate
  (ListNet with one list position, Cao et al. 2007).

  Args:
    relevant: indices of the documents that answer each query.
  """
  kept = [
    (one, np.isin(one.documents, list(good))) for one, good in zip(found, relevant, strict=True)
  ]
  kept = [(one, good) for one, good in kept if good.any()]
  if not kept:
    raise UserError('no query has an answer among what words or meaning find: pass other queries')
  most = max(len(good) for _, good in kept)
  features_QCF = np.zeros((len(kept), most, len(names)), np.float32)
  good_QC, there_QC = np.zeros((2, len(kept), most), bool)
  for row, (one, good) in enumerate(kept):
    features_QCF[row, : len(good)] = one.features[:, : len(names)]
    good_QC[row, : len(good)], there_QC[row, : len(good)] = good, True
  return dict(zip(names, _fit(features_QCF, good_QC, there_QC).tolist(), strict=True))


@jax.jit
def _fit(features_QCF: jax.Array, good_QC: jax.Array, there_QC: jax.Array) -> jax.Array:
  def loss(w_F):
    scores_QC = jnp.where(there_QC, features_QCF @ w_F, -1e9)
    likely_Q = jax.nn.logsumexp(jnp.where(good_QC, scores_QC, -1e9), axis=1)
    return jnp.mean(jax.nn.logsumexp(scores_QC, axis=1) - likely_Q) + 1e-4 * jnp.sum(w_F**2)

  tx = optax.adam(0.1)
  start = jnp.ones(features_QCF.shape[2])

  def step(carry, _):
    w_F, state = carry
    updates, state = tx.update(jax.grad(loss)(w_F), state)
    return (optax.apply_updates(w_F, updates), state), None

  (w_F, _), _ = jax.lax.scan(step, (start, tx.init(start)), None, length=600)
  return jnp.asarray(w_F)


def mine_negatives(documents, queries, relevant, count: int) -> np.ndarray:
  """The nearest documents that do not answer each query, i64 [Q, K]."""
  found = []
  count = min(count, len(documents) - max(map(len, relevant)))
  if count < 1:
    raise UserError('every document answers a query: pass documents that answer none too')
  for query, good in zip(queries, relevant, strict=True):
    near = top(documents @ query, count + len(good))
    found.append([index for index in near.tolist() if index not in good][:count])
  return np.array(found)


def reciprocal_rank(documents: np.ndarray, queries: np.ndarray, relevant) -> float:
  """Mean over queries of 1 / place of the first answer by cosine."""
  pairs = zip(queries, relevant, strict=True)
  return float(np.mean([reciprocal(documents @ query, good) for query, good in pairs]))


def reciprocal(scores: np.ndarray, good: set[int]) -> float:
  """1 / place of the first of `good` by f32 scores of all."""
  return 1.0 / (1 + int(np.sum(scores > scores[list(good)].max())))


def mean_of_first(
  found: Sequence[Candidates], relevant: Sequence[set[int]], weights: Mapping[str, float]
) -> float:
  """Mean over queries of 1 / place of the first answer among candidates, 0 where none is one."""
  places = []
  for one, good in zip(found, relevant, strict=True):
    is_good, scores = np.isin(one.documents, list(good)), weigh(one, weights)
    places.append(reciprocal(scores, set(np.flatnonzero(is_good).tolist())) if is_good.any() else 0)
  return float(np.mean(places))
