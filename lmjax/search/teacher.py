"""Who scores queries and documents for an encoder to learn from: another encoder, a language model, a function.

Q queries of an update, N documents shown with them, K negatives of each query.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from lmjax.core import tree
from lmjax.core.errors import UserError
from lmjax.core.metrics import progress
from lmjax.core.outside import find_function
from lmjax.core.storage import at
from lmjax.generate.choices import Pair, score_continuations
from lmjax.interop.load import Loaded, load
from lmjax.search.embed import Embedder, open_embedder
from lmjax.search.kept import kept

Says = Literal['cosine', 'likelihood']
Teach = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(queries, documents), indices [Q] and [N] -> scores f32 [Q, N], NaN where the teacher was not asked."""
ScorePairs = Callable[[Sequence[str], Sequence[str]], Sequence[float] | np.ndarray]
"""(queries, documents), as many of one as of the other, -> a score for each pair, the higher the better."""

_ASKED = 'A search query that this text answers:'
_LONGEST = 256  # tokens of a document that a language model reads


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
  if ':' in name and '://' not in name and not at(name).exists():
    return _of_pairs(find_function('train.teacher', name), name)
  if says == 'cosine':
    return _of_vectors(open_embedder(name))
  model = load(name)
  return _of_pairs(lambda *texts: likelihoods(model, *texts), name)


def _of_vectors(embedder: Embedder) -> Teacher:
  def ask(given: Triples) -> Teach:
    asked = np.unique(np.concatenate([given.answers_Q, given.negatives_QK.ravel()]))
    print(f'the teacher reads {len(asked):,} documents', flush=True)
    queries = embedder.embed_kept(given.queries)
    texts = [given.documents[index] for index in map(int, asked)]
    documents = embedder.embed_kept(texts, progress('documents read by the teacher'))
    return lambda some, shown: queries[some] @ documents[np.searchsorted(asked, shown)].T

  return ask


def _of_pairs(score: ScorePairs, name: str) -> Teacher:
  def ask(given: Triples) -> Teach:
    own_QK = np.column_stack([given.answers_Q, given.negatives_QK])
    asked: list[tuple[int, int]] = sorted(
      {(q, n) for q, row in enumerate(own_QK.tolist()) for n in row}
    )
    print(f'the teacher scores {len(asked):,} pairs of a query and a document', flush=True)
    scores = score([given.queries[q] for q, _ in asked], [given.documents[n] for _, n in asked])
    known = dict(zip(asked, _checked(scores, len(asked), name), strict=True))

    def teach(some: np.ndarray, shown: np.ndarray) -> np.ndarray:
      rows = [[known.get((q, n), np.nan) for n in shown.tolist()] for q in some.tolist()]
      return np.array(rows, np.float32)

    return teach

  return ask


def _checked(scores: Sequence[float] | np.ndarray, count: int, name: str) -> list[float]:
  try:
    found = np.asarray(scores, np.float32)
  except (TypeError, ValueError):
    found = np.full(0, np.nan, np.float32)
  if found.shape != (count,) or not np.isfinite(found).all():
    raise UserError(
      f'--train.teacher={name} did not return a number for each of {count} pairs: it takes queries and '
      'documents, two lists as long as each other, and returns a list of finite scores'
    )
  return found.tolist()


def likelihoods(loaded: Loaded, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
  """Mean log p of a query's tokens after its document and a request for one, nats, f32.

  Sachan et al. 2022 (arXiv:2204.07496) eq. 3.
  """

  def make() -> np.ndarray:
    words = loaded.tokenizer
    before, ask = np.array(words.before, np.int32), words.encode_batch([f'\n\n{_ASKED}'])[0]
    read = words.encode_batch(list(documents))
    contexts = [np.concatenate([before, text[:_LONGEST], ask]).astype(np.int32) for text in read]
    asked = [ids.astype(np.int32) for ids in words.encode_batch([f' {text}' for text in queries])]
    pairs = [Pair(*both) for both in zip(contexts, asked, strict=True)]
    show = progress('pairs scored by the teacher')
    done = 0

    def tell(count: int) -> None:
      nonlocal done
      show(count - done, len(pairs))
      done = count

    found = score_continuations(loaded.model, loaded.params, pairs, tell)
    return (found.logprob / np.array([max(len(ids), 1) for ids in asked])).astype(np.float32)

  weights = tree.sha256(tree.stack(loaded.params))
  return kept('teachers', ['likelihood', weights, _ASKED, *queries, *documents], make)
