"""Documents held in memory and every way to rank them for a query.

D size of a vector, S documents.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from lmjax.search.cross import ScorePairs
from lmjax.search.embed import Embedder, Progress
from lmjax.search.ranking import (
  READ,
  Candidates,
  Ranking,
  candidates,
  top,
  weigh,
)
from lmjax.search.reading import Reader
from lmjax.search.sets import Document, Query
from lmjax.search.words import Bm25, split_words

RERANKED = 20  # documents of a query that are read again
CROSSED = 10  # of these, that are read together with it
KEPT = 20  # documents of a ranking

Scores = dict[str, float]


class Engine:
  """Ranks `documents` for queries.

  Attributes:
    embedder: made the vectors.
    vectors: f32 [S, D] of the documents, in their order.
  """

  def __init__(
    self, documents: Sequence[Document], embedder: Embedder, progress: Progress | None = None
  ) -> None:
    self.documents, self.embedder = documents, embedder
    self._words = split_words([document.whole for document in documents])
    self.vectors = embedder.embed_kept([document.whole for document in documents], progress)
    self._reader = Reader(documents, self._words, embedder)

  def places(self, queries: Sequence[Query]) -> list[set[int]]:
    """The indices of the documents that answer each query."""
    place = {document.id: index for index, document in enumerate(self.documents)}
    return [{place[one] for one in query.relevant} for query in queries]

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
    self,
    texts: Sequence[str],
    vectors: np.ndarray,
    found: Sequence[Candidates],
    ranking: Ranking,
    *,
    tokens: bool = True,
  ) -> list[Candidates]:
    """The RERANKED best candidates of each query by the hybrid, with the features READ too.

    Args:
      tokens: whether to compare token by token; else the last of READ is 0.
    """
    best = []
    for one in found:
      chosen = top(weigh(one, ranking.hybrid), RERANKED)
      best.append(Candidates(one.documents[chosen], one.features[chosen]))
    documents = [one.documents for one in best]
    read = self._reader.read(texts, vectors, documents, tokens=tokens)
    return [
      Candidates(one.documents, np.column_stack([one.features, more]))
      for one, more in zip(best, read, strict=True)
    ]

  def read_together(
    self, texts: Sequence[str], again: Sequence[Candidates], ranking: Ranking, cross: ScorePairs
  ) -> list[Candidates]:
    """The CROSSED best of candidates that were read again, with the feature CROSS too."""
    best = []
    for one in again:
      chosen = top(weigh(one, ranking.reranked), CROSSED)
      best.append(Candidates(one.documents[chosen], one.features[chosen]))
    pairs = [(text, i) for text, one in zip(texts, best, strict=True) for i in one.documents]
    scores = cross([text for text, _ in pairs], [self.documents[i].whole for _, i in pairs])
    parts = np.split(scores, np.cumsum([len(one.documents) for one in best])[:-1])
    return [
      Candidates(one.documents, np.column_stack([one.features, mine]).astype(np.float32))
      for one, mine in zip(best, parts, strict=True)
    ]

  def rank(
    self,
    texts: Sequence[str],
    vectors: np.ndarray,
    ranking: Ranking,
    cross: ScorePairs | None = None,
  ) -> dict[str, list[Scores]]:
    """Method -> for each query, the ids of its first documents with their scores.

    `bm25` and `dense` rank all documents; `hybrid` their candidates, of which `reranked` puts the
    first in another order, by what reading them again says (READ), unless that weighs nothing.

    Args:
      cross: who reads the first of these together with the query; None: nobody.
    """
    found = self.find(texts, vectors, ranking)
    again, reranking = found, ranking.hybrid
    last = ranking.cross if cross else ranking.reranked
    if cross or any(ranking.reranked[name] for name in READ):
      tokens = bool(last[READ[-1]] or ranking.reranked[READ[-1]])
      again = self.read_again(texts, vectors, found, ranking, tokens=tokens)
      reranking = last
    if cross:
      again = self.read_together(texts, again, ranking, cross)
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
