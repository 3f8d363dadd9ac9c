"""Questions to an index on disk: what is found, in which order and why.

It follows the index while others write it. D size of a vector, C candidates.
"""

import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmjax.core.errors import UserError
from lmjax.data.split import normalise, strip_urls
from lmjax.search.embed import Embedder, open_embedder
from lmjax.search.evaluate import Tuned, load_tuned
from lmjax.search.index import generation, open_remote
from lmjax.search.keywords import Keywords, shuffled
from lmjax.search.qdrant import QdrantVectors
from lmjax.search.query import Filters, Query
from lmjax.search.ranking import POOL, features
from lmjax.search.sets import Document
from lmjax.search.store import Store
from lmjax.search.vectors import Nearest, load_vectors

_EXACT, _SHARE = 5_000, 0.05  # posts, or a share of them, whose vectors are all compared
_ALIKE, _SHARED = 0.9, 0.8  # cosine, and share of the words, from which two posts are copies
_NEAR = 0.3  # cosine from which a post that shares no word is about the same
_HALF_DAYS = 30.0  # after which a post is half as fresh
_READ = 16_384  # vectors read together
BROWSED = 1000  # posts that filters alone give at most
PRIORS = ('freshness', 'engagement')

Weights = Mapping[str, float]


class Hit(NamedTuple):
  """A post that was found.

  Attributes:
    reasons: what each feature adds to the score; see FEATURES and PRIORS.
    meaning: cosine with the query.
    snippet: the part of the text to show, and `highlights` (from, to) in it.
    copies: ids of posts that say the same, which are not shown themselves.
  """

  number: int
  document: Document
  score: float
  reasons: dict[str, float]
  meaning: float
  words: tuple[str, ...]
  snippet: str
  highlights: list[tuple[int, int]]
  copies: tuple[str, ...]

  @property
  def relevant(self) -> bool:
    """Whether it shares a word with the query or is near in meaning; without a query all are."""
    return bool(self.words) or self.meaning >= _NEAR or not self.reasons

  @property
  def why(self) -> str:
    """The reasons in words."""
    told = []
    if self.words:
      told.append(f'has {", ".join(self.words)}')
    if self.meaning >= _NEAR:
      told.append(f'is near in meaning ({self.meaning:.2f})')
    if self.reasons.get('freshness'):
      told.append('is recent')
    if self.reasons.get('engagement'):
      told.append(f'has {self.document.likes or 0:,.0f} likes')
    if not self.reasons:
      told.append('passes the filters')
    return '; '.join(told) or 'is the nearest there is'


class Ranked(NamedTuple):
  """Candidates in their order, before copies are put together.

  Attributes:
    names: of features; none where filters alone were asked for.
    numbers: i64 [C].
    scores: f32 [C].
    parts: f32 [C, names] what each feature adds.
    vectors: f32 [C, D].
    meaning: f32 [C] cosines.
  """

  names: tuple[str, ...]
  numbers: np.ndarray
  scores: np.ndarray
  parts: np.ndarray
  vectors: np.ndarray
  meaning: np.ndarray


class Searcher:
  """Reads the index in `folder`, from any thread.

  Args:
    checkpoint: the folder of a run of search_tune; empty = ranked as shipped.
    priors: weight of each of PRIORS, 0 where it is not named.

  Raises:
    UserError: there is no index, or its encoder is not what it was built with.
  """

  def __init__(self, folder: Path, *, checkpoint: str = '', priors: Weights | None = None) -> None:
    self.folder, self._checkpoint = folder, checkpoint
    self._priors = {name: (priors or {}).get(name, 0.0) for name in PRIORS}
    self._lock = threading.RLock()
    self._store = Store(folder)
    self._generation: int | None = None
    self._embedder: Embedder | None = None
    self._remote: QdrantVectors | None = None
    self._seq = self._words_seq = 0
    try:
      self.refresh()
    except BaseException:
      self.close()
      raise

  @property
  def count(self) -> int:
    return self._store.count

  def refresh(self) -> None:
    """Sees what has been written since."""
    with self._lock:
      for attempt in range(3):
        state = self._store.state()
        try:
          self._refresh(state)
          return
        except (UserError, ValueError):
          # A generation may have been replaced while it was opened.
          if attempt == 2 or self._store.state() == state:
            raise

  def _refresh(self, state: Mapping[str, Any]) -> None:
    if state.get('vectors_seq') is None:
      raise UserError(
        f'{self.folder} is not ready: start search_posts with this --index until it ends'
      )
    if self._embedder is None or self._embedder.name != state['embedder']:
      self._embedder, self._generation = self._open_encoder(state), None
      self._table = f'vectors_{self._embedder.name}'
      self._tuned: Tuned = load_tuned(self._checkpoint, self._embedder)
    if state['generation'] != self._generation:
      folder = generation(self.folder, state['generation'])
      self._words = Keywords(folder / 'words', write=False)
      self._close_remote()
      self._remote = open_remote(self._store, self._embedder)
      self._vectors: Nearest = self._remote or load_vectors(folder / 'vectors.faiss')
      self._seq, self._words_seq = state['vectors_seq'], state['words_seq']
      self._generation = state['generation']
    if state['words_seq'] != self._words_seq:
      self._words.reload()
      self._words_seq = state['words_seq']
    if state['seq'] > self._seq:
      if self._remote is None:  # else the writer does it
        self._vectors.remove(self._store.gone(self._seq))
        numbers = self._store.numbers(self._seq, state['seq'])
        self._vectors.add(*self._store.vectors(numbers, self._table))
      self._seq = state['seq']

  def _open_encoder(self, state: Mapping[str, Any]) -> Embedder:
    embedder = open_embedder(
      state['encoder'], dimensions=state['size'], pooling=state.get('pooling')
    )
    if embedder.name != state['embedder']:
      raise UserError(
        f'{self.folder} was built with another encoder than {state["encoder"]} is now: put that back, '
        'or start search_posts with --reembed'
      )
    return embedder

  def embed(self, texts: Sequence[str]) -> np.ndarray:
    """Vectors of queries, f32 [texts, D]."""
    assert self._embedder is not None
    return self._tuned.adapt(self._embedder.embed(texts))

  @property
  def kind(self) -> str:
    """How vectors are searched, by faiss's name."""
    return self._vectors.kind

  def sample(self, count: int) -> list[str]:
    """The first halves of some posts, always the same ones."""
    numbers = self._store.numbers()
    chosen = np.random.default_rng(0).permutation(numbers)[:count].tolist()
    texts = [
      strip_urls(document.whole).split() for document in self._store.documents(chosen).values()
    ]
    return [' '.join(words[: max(1, len(words) // 2)]) for words in texts]

  def exact(self, vectors: np.ndarray, count: int) -> list[np.ndarray]:
    """i64: for each of f32 [queries, D] the numbers of the nearest posts, all of which are compared."""
    numbers, firsts = self._store.numbers(), []
    for start in range(0, len(numbers), _READ):
      some, theirs = self._store.vectors(numbers[start : start + _READ], self._table)
      near = vectors @ theirs.T
      best = np.argsort(-near, axis=1)[:, :count]
      firsts.append((some[best], np.take_along_axis(near, best, axis=1)))
    found, near = (np.concatenate(parts, axis=1) for parts in zip(*firsts, strict=True))
    best = np.argsort(-near, axis=1)[:, :count]
    return list(np.take_along_axis(found, best, axis=1))

  def nearest(self, vector: np.ndarray, count: int) -> np.ndarray:
    """i64: the nearest posts: of the POOL that the index of vectors finds, as for any query."""
    with self._lock:
      near = self._vectors.nearest(vector, max(count, POOL))
      numbers, vectors = self._store.vectors(near, self._table)
      return numbers[np.argsort(-(vectors @ vector), kind='stable')][:count]

  def rank(self, query: Query, vector: np.ndarray | None = None) -> Ranked:
    """Candidates by words and by meaning, in the order of their scores.

    Args:
      vector: f32 [D] of `query.text`, where it is known.
    """
    with self._lock:
      try:
        self.refresh()
        return self._rank(query, vector)
      except sqlite3.OperationalError:  # all posts were embedded again meanwhile
        self.refresh()
        return self._rank(query, None)

  def _rank(self, query: Query, vector: np.ndarray | None) -> Ranked:
    if not query.text:
      return self._browse(query.filters)
    vector_D: np.ndarray = self.embed([query.text])[0] if vector is None else vector
    by_words, scores = self._words.find(self._words.query(query.text, query.filters), POOL)
    by_meaning = self._by_meaning(query.filters, vector_D)
    chosen = np.unique(np.concatenate([by_words, by_meaning]))
    numbers, vectors = self._store.vectors(chosen, self._table)
    meaning = vectors @ vector_D
    words = self._word_scores(query.text, numbers) / (float(scores.max(initial=0.0)) or 1.0)
    firsts = []
    for found, own in ((by_words, words), (by_meaning, meaning)):
      places = np.searchsorted(numbers, found[np.isin(found, numbers)])
      firsts.append(places[np.argsort(-own[places], kind='stable')])
    return self._weighed(numbers, vectors, meaning, features([words, meaning], firsts))

  def _word_scores(self, text: str, numbers: np.ndarray) -> np.ndarray:
    """BM25 of these posts, f32 [C]."""
    words = np.zeros(len(numbers), np.float32)
    if len(numbers):
      asked = self._words.query(text, Filters(), numbers.tolist())
      found, scores = self._words.find(asked, len(numbers))
      words[np.searchsorted(numbers, found)] = scores
    return words

  def _by_meaning(self, filters: Filters, vector: np.ndarray) -> np.ndarray:
    """i64: about the POOL nearest posts that pass `filters`."""
    if filters == Filters():
      return self._vectors.nearest(vector, POOL)
    passing = self._words.query('', filters)
    count, total = self._words.count(passing), max(len(self._words), 1)
    if count <= max(_EXACT, _SHARE * total):
      numbers, _ = self._words.find(passing, count)
      numbers, vectors = self._store.vectors(numbers, self._table)
      return numbers[np.argsort(-(vectors @ vector))[:POOL]]
    # Many pass: some more are looked at than would be needed if those that pass were like all others.
    near = self._vectors.nearest(vector, int(3 * POOL * total / count))
    kept, _ = self._words.find(self._words.query('', filters, near.tolist()), len(near))
    return near[np.isin(near, kept)][:POOL]

  def _browse(self, filters: Filters) -> Ranked:
    """Filters alone: the latest first."""
    numbers = self._words.newest(self._words.query('', filters), BROWSED)
    scores = np.arange(len(numbers), 0, -1, dtype=np.float32)
    nothing = np.zeros((len(numbers), 0), np.float32)
    return Ranked((), numbers, scores, nothing, nothing, np.zeros_like(scores))

  def _weighed(self, numbers, vectors, meaning, features_CF) -> Ranked:
    weights = {**self._tuned.ranking.hybrid, **self._priors}
    if any(self._priors.values()):
      features_CF = np.column_stack([features_CF, self._prior_features(numbers)])
    else:
      weights = dict(self._tuned.ranking.hybrid)
    parts = features_CF * np.array(list(weights.values()), np.float32)
    scores = parts.sum(axis=1)
    order = np.lexsort((shuffled(numbers), -scores))
    ordered = (array[order] for array in (numbers, scores, parts, vectors, meaning))
    return Ranked(tuple(weights), *ordered)

  def _prior_features(self, numbers: np.ndarray) -> np.ndarray:
    """f32 [C, 2] from 0 to 1: how recent, halved every 30 days, and how many likes beside the most."""
    there = self._store.documents(numbers.tolist())
    rows = [there.get(number) for number in numbers.tolist()]
    now = time.time()
    days = (
      np.array([now - row.time if row and row.time is not None else np.inf for row in rows])
      / 86_400
    )
    likes = np.log1p([max(row.likes or 0.0, 0.0) if row else 0.0 for row in rows])
    fresh = np.minimum(0.5 ** (days / _HALF_DAYS), 1.0)
    return np.column_stack([fresh, likes / max(float(likes.max(initial=0.0)), 1e-9)]).astype(
      np.float32
    )

  def hits(
    self, query: Query, count: int, after: tuple[float, int] | None = None
  ) -> tuple[list[Hit], tuple[float, int] | None]:
    """The next `count` posts, copies put together, and what `after` continues with, None at the end.

    Args:
      after: (score, number) of the last one that was shown; of a page before.
    """
    with self._lock:
      ranked = self.rank(query)
      there = self._store.documents(ranked.numbers.tolist())
      kept = np.array([number in there for number in ranked.numbers.tolist()], bool)
      ranked = Ranked(ranked.names, *(array[kept] for array in ranked[1:]))
      texts = [there[number].whole for number in ranked.numbers.tolist()]
      groups = together(ranked.vectors, texts)
      firsts = [first for first in groups if after is None or _comes_after(ranked, first, after)]
      shown = [self._hit(ranked, groups[first], there, query) for first in firsts[:count]]
    last = firsts[:count][-1] if len(firsts) > count else None
    more = None if last is None else (float(ranked.scores[last]), int(ranked.numbers[last]))
    return shown, more

  def _hit(
    self, ranked: Ranked, group: list[int], there: Mapping[int, Document], query: Query
  ) -> Hit:
    first, number = group[0], int(ranked.numbers[group[0]])
    document = there[number]
    snippet, highlights = self._words.snippet(document.whole, query.text)
    words = tuple(dict.fromkeys(snippet[a:b].lower() for a, b in highlights))
    copies = (int(ranked.numbers[other]) for other in group[1:])
    reasons = dict(zip(ranked.names, map(float, ranked.parts[first]), strict=True))
    return Hit(
      number,
      document,
      float(ranked.scores[first]),
      reasons,
      float(ranked.meaning[first]),
      words,
      snippet,
      highlights,
      tuple(there[other].id for other in copies),
    )

  def close(self) -> None:
    self._close_remote()
    self._store.close()

  def _close_remote(self) -> None:
    if self._remote is not None:
      self._remote.close()
      self._remote = None


def together(vectors: np.ndarray, texts: Sequence[str]) -> dict[int, list[int]]:
  """First of each group of copies -> the group, in the order of candidates.

  Copies are near in meaning and share most words: by meaning alone two numbers are the same.

  Args:
    vectors: f32 [C, D] in their order; [C, 0] where copies are not looked for.
  """
  if not vectors.shape[1]:
    return {index: [index] for index in range(len(texts))}
  near = vectors @ vectors.T >= _ALIKE
  words = [set(normalise(text).split()) for text in texts]
  groups: dict[int, list[int]] = {}
  for index, mine in enumerate(words):
    alike = (
      first
      for first in groups
      if near[first, index] and len(mine & words[first]) >= _SHARED * len(mine | words[first])
    )
    groups.setdefault(next(alike, index), []).append(index)
  return groups


def _comes_after(ranked: Ranked, index: int, after: tuple[float, int]) -> bool:
  """Whether a candidate follows the last that was shown; where that is gone, by its score."""
  place = np.flatnonzero(ranked.numbers == after[1])
  if len(place):
    return index > place[0]
  return bool(ranked.scores[index] < after[0])
