"""Keyword search: BM25 over stemmed words without stop words and links.

Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework", by the library bm25s.
"""

from collections.abc import Sequence

import numpy as np

from lmjax.core.errors import UserError
from lmjax.data.split import strip_urls
from lmjax.search.sets import EXTRA

Words = list[list[str]]


def split_words(texts: Sequence[str]) -> Words:
  """The stemmed English words of each text."""
  try:
    import bm25s
    import Stemmer
  except ImportError:
    raise UserError(EXTRA) from None
  found = bm25s.tokenize(
    [strip_urls(text) for text in texts],
    stopwords='en',
    stemmer=Stemmer.Stemmer('english'),
    return_ids=False,
    show_progress=False,
  )
  return [list(map(str, words)) for words in found]


class Bm25:
  """An index of documents' words, in memory.

  Args:
    documents: the words of each, see `split_words`.
    k1: how soon a word that comes again counts no more.
    b: how much a long document's words count less, 0 to 1.
  """

  def __init__(self, documents: Words, *, k1: float, b: float) -> None:
    import bm25s

    self._count = len(documents)
    self._index = bm25s.BM25(k1=k1, b=b)
    self._known: set[str] = {word for words in documents for word in words}
    if self._known:
      self._index.index(documents, show_progress=False)

  def scores(self, query: list[str]) -> np.ndarray:
    """f32 [documents], 0 where no word is shared."""
    known = [word for word in query if word in self._known]
    return self._index.get_scores(known) if known else np.zeros(self._count, np.float32)
