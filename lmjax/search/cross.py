"""Scores of a query and a document that are read together: a language model's likelihood, or a cross-encoder."""

from collections.abc import Callable, Sequence

import numpy as np

from lmjax.core import tree
from lmjax.core.errors import UserError
from lmjax.core.metrics import progress
from lmjax.core.outside import find_function
from lmjax.core.storage import at
from lmjax.generate.choices import Pair, score_continuations
from lmjax.interop.load import Loaded, load
from lmjax.search.kept import kept

ScorePairs = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""(queries, documents), as many of one as of the other, -> a score for each pair, the higher the better, f32."""

_ASKED = 'A search query that this text answers:'
_LONGEST = 256  # tokens of a document that a language model reads


def open_cross(flag: str, name: str) -> ScorePairs:
  """Who reads a query and a document together. What models say is kept in LMJAX_CACHE.

  Args:
    flag: the flag that gave `name`.
    name: a language model as --checkpoint, whose likelihood of the query after the document counts, or
      `package.module:function`, a cross-encoder say, that returns finite scores, one a pair.

  Raises:
    UserError: there is no such model or function; when it is asked: its scores are not as many as pairs.
  """
  if is_function(name):
    score = find_function(flag, name)
    return lambda queries, documents: _checked(
      flag, name, score(list(queries), list(documents)), len(queries)
    )
  model = load(name)
  return lambda queries, documents: likelihoods(model, queries, documents)


def is_function(name: str) -> bool:
  """Whether it names a function, `package.module:function`, and no file."""
  return ':' in name and '://' not in name and not at(name).exists()


def _checked(flag: str, name: str, scores: Sequence[float] | np.ndarray, count: int) -> np.ndarray:
  try:
    found = np.asarray(scores, np.float32)
  except (TypeError, ValueError):
    found = np.full(0, np.nan, np.float32)
  if found.shape != (count,) or not np.isfinite(found).all():
    raise UserError(
      f'--{flag}={name} did not return a number for each of {count} pairs: it takes queries and '
      'documents, two lists as long as each other, and returns a list of finite scores'
    )
  return found


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
    show = progress('pairs of a query and a document read')
    done = 0

    def tell(count: int) -> None:
      nonlocal done
      show(count - done, len(pairs))
      done = count

    found = score_continuations(loaded.model, loaded.params, pairs, tell)
    return (found.logprob / np.array([max(len(ids), 1) for ids in asked])).astype(np.float32)

  weights = tree.sha256(tree.stack(loaded.params))
  return kept('teachers', ['likelihood', weights, _ASKED, *queries, *documents], make)
