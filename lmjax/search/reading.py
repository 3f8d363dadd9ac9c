"""What reading a candidate again says of it: its title, its words side by side, its tokens.

C candidates of a query, L its tokens, M tokens of a text, D size of a vector, S texts.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lmjax.search.embed import Embedder
from lmjax.search.sets import Document
from lmjax.search.words import Words, split_words

_BY_WORDS = 4  # the first of READ
_HEAD = re.compile(r'(.{4,120}?)(?: -- |[.!?]\s|\n)', re.DOTALL)
_HEAD_WORDS = 16


def title_of(document: Document) -> str:
  """Its title; of one without, how it begins: up to a dash or the first sentence's end."""
  if document.title:
    return document.title
  begins = _HEAD.match(document.text)
  return begins[1] if begins else ' '.join(document.text.split()[:_HEAD_WORDS])


class Reader:
  """Reads documents again for queries that may be answered by them.

  Args:
    words: of each document, see `split_words`.
  """

  def __init__(self, documents: Sequence[Document], words: Words, embedder: Embedder) -> None:
    self._documents, self._words, self._embedder = documents, words, embedder
    self._holders = Counter(word for one in words for word in set(one))

  def read(
    self, texts: Sequence[str], vectors: np.ndarray, found: Sequence[np.ndarray], *, tokens: bool
  ) -> list[np.ndarray]:
    """f32 [C, F] for each query, `ranking.READ`.

    Args:
      texts, vectors: the queries, and theirs, f32 [queries, D].
      found: i64 [C] candidates of each, indices of documents.
      tokens: whether to compare token by token, which takes the longest; else the last of READ is 0.
    """
    needed = np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
    documents = [self._documents[index] for index in needed.tolist()]
    titles = [title_of(document) for document in documents]
    title_words = split_words(titles)
    title_SD = self._embedder.embed(titles)
    late = [np.zeros(len(mine), np.float32) for mine in found]
    if tokens:
      self._compare(texts, documents, [np.searchsorted(needed, mine) for mine in found], late)
    features = []
    for row, (mine, asked) in enumerate(zip(found, split_words(texts), strict=True)):
      places = np.searchsorted(needed, mine)
      by_words = [
        self._by_words(asked, self._words[index], title_words[place])
        for index, place in zip(mine.tolist(), places.tolist(), strict=True)
      ]
      columns = (
        np.array(by_words).reshape(-1, _BY_WORDS),
        title_SD[places] @ vectors[row],
        late[row],
      )
      features.append(np.column_stack(columns).astype(np.float32))
    return features

  def _compare(
    self,
    texts: Sequence[str],
    documents: Sequence[Document],
    places: Sequence[np.ndarray],
    late: Sequence[np.ndarray],
  ) -> None:
    """Writes into `late` how near the candidates at `places` of `documents` are, token by token.

    Each document is embedded once, whichever queries it may answer: that is what takes the time.
    """
    queries = dict(self._embedder.embed_tokens(texts))
    asked: dict[int, list[tuple[int, int]]] = {}
    for row, mine in enumerate(places):
      for column, place in enumerate(mine.tolist()):
        asked.setdefault(place, []).append((row, column))
    for place, document_MD in self._embedder.embed_tokens([one.whole for one in documents]):
      for row, column in asked[place]:
        late[row][column] = late_interaction(queries[row], document_MD)

  def _by_words(self, asked: list[str], words: list[str], title: list[str]) -> list[float]:
    """The first _BY_WORDS of READ, of one candidate, each from 0 to 1."""
    query, head = set(asked), set(title)
    pairs = set(itertools.pairwise(asked))
    shared = pairs.intersection(itertools.pairwise(words))
    return [
      self._weight(query.intersection(words)) / (self._weight(query) or 1.0),
      self._weight(query & head) / (self._weight(query) or 1.0),
      self._weight(query & head) / (self._weight(head) or 1.0),
      len(shared) / max(len(pairs), 1),
    ]

  def _weight(self, words: set[str]) -> float:
    """Sum of BM25's inverse document frequencies."""
    count = len(self._documents)
    held = (self._holders[word] for word in words)
    return sum(math.log1p((count - n + 0.5) / (n + 0.5)) for n in held)


def late_interaction(query_LD: np.ndarray, document_MD: np.ndarray) -> float:
  """MaxSim: the mean over the query's tokens of the cosine of the nearest of a text's, 0 without tokens.

  Khattab & Zaharia 2020 (arXiv:2004.12832) eq. 3, but a mean and not a sum.

  Args:
    query_LD, document_MD: f32 token vectors of length 1.
  """
  if not len(query_LD) or not len(document_MD):
    return 0.0
  return float((query_LD @ document_MD.T).max(axis=1).mean())
