"""Documents held in memory and every way to rank them for a query.

D size of a vector, S documents, L query tokens, M document tokens.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from lmjax.search.embed import Embedder, Progress
from lmjax.search.ranking import (
  LATE,
  Candidates,
  Ranking,
  candidates,
  late_interaction,
  top,
  weigh,
)
from lmjax.search.sets import Document
from lmjax.search.words import Bm25, split_words

RERANKED = 20  # documents of a query that are read again
_TOGETHER = 64  # queries whose documents are read together
KEPT = 20  # documents of a ranking

Scores = dict[str, float]


class Engine:
  """Ranks `documents` for queries.

  Attributes:
    vectors: f32 [S, D] of the documents, in their order.
  """

  def __init__(
    self, documents: Sequence[Document], embedder: Embedder, progress: Progress | None = None
  ) -> None:
    self.documents, self._embedder = documents, embedder
    self._words = split_words([document.whole for document in documents])
    self.vectors = embedder.embed([document.whole for document in documents], progress)

  def score_words(self, texts: Sequence[str], ranking: Ranking) -> Iterator[np.ndarray]:
    """BM25 of all documents for each query, f32 [S]."""
    index = Bm25(self._words, k1=ranking.k1, b=ranking.b)
    return map(index.scores, split_words(texts))

  def find(self, texts: Sequence[str], vectors: np.ndarray, ranking: Ranking) -> list[Candidates]:
    """Candidates of each query, with features of words and meaning.

    Args:
      vectors: f32 [queries, D], of length 1.
    """
    scores = self.score_words(texts, ranking)
    return [
      candidates(words, self.vectors @ vector)
      for words, vector in zip(scores, vectors, strict=True)
    ]

  def read_again(
    self, texts: Sequence[str], found: Sequence[Candidates], ranking: Ranking
  ) -> list[Candidates]:
    """The RERANKED best candidates of each query by the hybrid, with the feature LATE too."""
    best = []
    for one in found:
      chosen = top(weigh(one, ranking.hybrid), RERANKED)
      best.append(Candidates(one.documents[chosen], one.features[chosen]))
    again = []
    for start in range(0, len(texts), _TOGETHER):
      mine = best[start : start + _TOGETHER]
      needed = np.unique(np.concatenate([one.documents for one in mine]))
      read = self._embedder.embed_tokens([self.documents[i].whole for i in needed])
      queries = self._embedder.embed_tokens(texts[start : start + _TOGETHER])
      for query, one in zip(queries, mine, strict=True):
        late = self._late(query, [read[i] for i in np.searchsorted(needed, one.documents)])
        again.append(Candidates(one.documents, np.column_stack([one.features, late])))
    return again

  def _late(self, query: np.ndarray, documents: list[np.ndarray]) -> np.ndarray:
    """`late_interaction`, padded to shapes that repeat."""
    whole = lambda count: -(-count // 32) * 32
    longest = whole(max(len(document) for document in documents))
    document_SMD = np.zeros((RERANKED, longest, self._embedder.size), np.float32)
    there_SM = np.zeros((RERANKED, longest), bool)
    for row, document in enumerate(documents):
      document_SMD[row, : len(document)], there_SM[row, : len(document)] = document, True
    query_LD = np.zeros((whole(len(query)), self._embedder.size), np.float32)
    query_LD[: len(query)] = query
    return np.asarray(late_interaction(query_LD, document_SMD, there_SM))[: len(documents)]

  def rank(
    self, texts: Sequence[str], vectors: np.ndarray, ranking: Ranking
  ) -> dict[str, list[Scores]]:
    """Method -> for each query, the ids of its first documents with their scores.

    `bm25` and `dense` rank all documents; `hybrid` their candidates, of which `reranked` puts the
    first in another order, unless LATE weighs nothing: then it is the hybrid.
    """
    found = self.find(texts, vectors, ranking)
    again, reranking = found, ranking.hybrid
    if ranking.reranked[LATE]:
      again, reranking = self.read_again(texts, found, ranking), ranking.reranked
    ranked: dict[str, list[Scores]] = {'bm25': [], 'dense': [], 'hybrid': [], 'reranked': []}
    for number, words in enumerate(self.score_words(texts, ranking)):
      for method, scores in (
        ('bm25', words),
        ('dense', self.vectors @ vectors[number]),
      ):
        first = top(scores, KEPT)
        ranked[method].append(self._named(first[scores[first] > 0], scores[first]))
      for method, one, weights in (
        ('hybrid', found[number], ranking.hybrid),
        ('reranked', again[number], reranking),
      ):
        scores = weigh(one, weights)
        first = top(scores, KEPT)
        ranked[method].append(self._named(one.documents[first], scores[first]))
    return ranked

  def _named(self, documents: np.ndarray, scores: np.ndarray) -> Scores:
    return {self.documents[i].id: float(s) for i, s in zip(documents, scores, strict=False)}
