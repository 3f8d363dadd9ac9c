"""Who scores queries and documents for an encoder to learn from: another encoder, a language model, a function.

Q queries of an update, N documents shown with them, K negatives of each query.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from lmjax.core.metrics import progress
from lmjax.search.cross import ScorePairs, is_function, open_cross
from lmjax.search.embed import Embedder, open_embedder

Says = Literal['cosine', 'likelihood']
Teach = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(queries, documents), indices [Q] and [N] -> scores f32 [Q, N], NaN where the teacher was not asked."""


class Triples(NamedTuple):
  """What teaches: indices of queries, of an answer and of near documents that are none, for each.

  Attributes:
    relevant: indices of all documents that answer each query.
  """

  queries: Sequence[str]
  documents: Sequence[str]
  answers_Q: np.ndarray
  negatives_QK: np.ndarray
  relevant: Sequence[set[int]]


Teacher = Callable[[Triples], Teach]
"""Asked once of all that is going to be shown."""


def open_teacher(name: str, says: Says) -> Teacher | None:
  """A teacher, ready to be asked.

  An encoder scores every query with every document of an update, a model's likelihood and a function each
  query with its own documents alone. What models say is kept in LMJAX_CACHE.

  Args:
    name: what `open_embedder` takes, `package.module:function`, a `ScorePairs`, or '' = there is none.

  Raises:
    UserError: there is no such teacher; when it is asked: its scores are not as many as pairs, or no numbers.
  """
  if not name:
    return None
  if says == 'cosine' and not is_function(name):
    return _of_vectors(open_embedder(name))
  return _of_pairs(open_cross('train.teacher', name))


def _of_vectors(embedder: Embedder) -> Teacher:
  def ask(given: Triples) -> Teach:
    asked = np.unique(np.concatenate([given.answers_Q, given.negatives_QK.ravel()]))
    print(f'the teacher reads {len(asked):,} documents', flush=True)
    queries = embedder.embed_kept(given.queries)
    texts = [given.documents[index] for index in map(int, asked)]
    documents = embedder.embed_kept(texts, progress('documents read by the teacher'))
    return lambda some, shown: queries[some] @ documents[np.searchsorted(asked, shown)].T

  return ask


def _of_pairs(score: ScorePairs) -> Teacher:
  def ask(given: Triples) -> Teach:
    own_QK = np.column_stack([given.answers_Q, given.negatives_QK])
    asked: list[tuple[int, int]] = sorted(
      {(q, n) for q, row in enumerate(own_QK.tolist()) for n in row}
    )
    print(f'the teacher scores {len(asked):,} pairs of a query and a document', flush=True)
    scores = score([given.queries[q] for q, _ in asked], [given.documents[n] for _, n in asked])
    known = dict(zip(asked, scores.tolist(), strict=True))

    def teach(some: np.ndarray, shown: np.ndarray) -> np.ndarray:
      rows = [[known.get((q, n), np.nan) for n in shown.tolist()] for q in some.tolist()]
      return np.array(rows, np.float32)

    return teach

  return ask
