"""What reading a candidate again says of it: its title, its words side by side, its tokens.

C candidates of a query, L its tokens, M tokens of a text, D size of a vector, S texts.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.search.embed import Embedder
from lmjax.search.sets import Document
from lmjax.search.words import Words, split_words

_BY_WORDS = 4  # the first of READ
_HEAD = re.compile(r'(.{4,120}?)(?: -- |[.!?]\s|\n)', re.DOTALL)
_HEAD_WORDS = 16
_PADDED = 32  # lengths of what is compared token by token are multiples of it


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
    read = self._embedder.embed_tokens([one.whole for one in documents]) if tokens else []
    queries = self._embedder.embed_tokens(texts) if tokens else []
    features = []
    for row, (mine, asked) in enumerate(zip(found, split_words(texts), strict=True)):
      places = np.searchsorted(needed, mine)
      by_words = [
        self._by_words(asked, self._words[index], title_words[place])
        for index, place in zip(mine.tolist(), places.tolist(), strict=True)
      ]
      late = compare(queries[row], [read[i] for i in places]) if tokens else np.zeros(len(mine))
      columns = (np.array(by_words).reshape(-1, _BY_WORDS), title_SD[places] @ vectors[row], late)
      features.append(np.column_stack(columns).astype(np.float32))
    return features

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


def compare(query_LD: np.ndarray, documents: Sequence[np.ndarray]) -> np.ndarray:
  """`late_interaction` with documents of any lengths, f32 [S], padded to shapes that repeat.

  Args:
    query_LD, documents: vectors of tokens, of length 1.
  """
  padded = lambda count: -(-count // _PADDED) * _PADDED
  longest = padded(max((len(document) for document in documents), default=1))
  rows = 1 << max(len(documents) - 1, 0).bit_length()
  size = query_LD.shape[1]
  document_SMD = np.zeros((rows, longest, size), np.float32)
  there_SM = np.zeros((rows, longest), bool)
  for row, document in enumerate(documents):
    document_SMD[row, : len(document)], there_SM[row, : len(document)] = document, True
  padded_LD = np.zeros((padded(len(query_LD)), size), np.float32)
  padded_LD[: len(query_LD)] = query_LD
  return np.asarray(late_interaction(padded_LD, document_SMD, there_SM))[: len(documents)]


@jax.jit
def late_interaction(
  query_LD: jax.Array, document_SMD: jax.Array, there_SM: jax.Array
) -> jax.Array:
  """MaxSim, f32 [S]: the mean over the query's tokens of the cosine of the nearest of a text's.

  Khattab & Zaharia 2020 (arXiv:2004.12832) eq. 3, but a mean and not a sum.

  Args:
    query_LD, document_SMD: token vectors of length 1; those of length 0 do not count.
    there_SM: bool, which tokens of the texts are.
  """
  near_SLM = jnp.einsum('LD,SMD->SLM', query_LD, document_SMD)
  best_SL = jnp.max(jnp.where(there_SM[:, None], near_SLM, -1.0), axis=2)
  counted_L = jnp.sum(jnp.abs(query_LD), axis=1) > 0
  return jnp.sum(best_SL * counted_L[None], axis=1) / jnp.maximum(jnp.sum(counted_L), 1)
