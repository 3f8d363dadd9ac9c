"""An index of posts that is written: added to, deleted from, embedded again, while others search it.

One folder: `posts.sqlite` is the truth (`store.py`), `generation-N/` holds what is made of it, `words/`
(`keywords.py`) and `vectors.faiss` (`vectors.py`), each of which says up to where of the journal it goes.
A kill at any moment loses what was not committed and nothing else: the next start follows the journal.
"""

import hashlib
import itertools
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmjax.core.errors import UserError
from lmjax.core.task import hold_workdir
from lmjax.data.sources import Post
from lmjax.search.embed import Embedder
from lmjax.search.keywords import Keywords
from lmjax.search.qdrant import QdrantVectors
from lmjax.search.sets import Document
from lmjax.search.store import Store
from lmjax.search.vectors import GRAPH, Precision, Vectors, build_vectors

TOGETHER = 2048  # posts of one change
_SPENT = ('index_seconds', 'embed_seconds', 'embedded')
_STALE = 0.1  # of the posts, that changed since vectors were built: then they are built again
_READ = 16_384  # vectors read together
_SAMPLE = 200_000  # vectors that lists are learnt from

Progress = Callable[[int, int], None]
"""(posts that were added, posts that were there already or banned) since the last call."""


class Counts(NamedTuple):
  """What became of the posts that were given: they add up.

  Attributes:
    added: they are in the index now, `changed` of them in place of an older version.
    kept: they were there already.
    banned: they are on the list of deleted posts.
    repeated: a later post, of those read together, has the same id.
  """

  given: int = 0
  added: int = 0
  changed: int = 0
  kept: int = 0
  banned: int = 0
  repeated: int = 0

  def plus(self, **more: int) -> 'Counts':
    return self._replace(**{key: getattr(self, key) + n for key, n in more.items()})


class Index:
  """An index that is being written. Close it.

  Args:
    encoder: what `load_encoder` takes; kept, so that whoever searches finds it.
    precision: of the vectors that are searched, see `build_vectors`; another than before builds them anew.
    qdrant: address of a Qdrant server that holds the vectors; kept with the index, '' = as it was.
    reembed: where it is of another encoder, make all vectors anew.

  Attributes:
    spent: seconds, and posts embedded, of all runs that built it.

  Raises:
    UserError: another process writes it, it cannot be read, or it is of another encoder.
  """

  def __init__(
    self,
    folder: Path,
    embedder: Embedder,
    encoder: str,
    *,
    reembed: bool = False,
    precision: Precision = 'float32',
    qdrant: str = '',
    progress: Progress | None = None,
  ) -> None:
    self.folder, self._embedder, self._remote = folder, embedder, None
    if qdrant and precision != 'float32':
      raise UserError(
        f'precision={precision} is for vectors in the folder: leave out --qdrant, or it'
      )
    self._held = hold_workdir(folder, 'index')
    self._words: Keywords | None = None
    try:
      self.store = Store(folder, create=True)
    except BaseException:
      self._held.close()
      raise
    try:
      for old in folder.glob('generation-*'):
        if old != self.generation:  # a killed process left it
          shutil.rmtree(old)
      self._words = Keywords(self.generation / 'words', write=True)
      self.spent = {key: self.store.said(key, 0) for key in _SPENT}
      self._remote = self._open_remote(qdrant)
      self._follow()
      self._begin(encoder, reembed, progress)
      if self.store.said('precision', 'float32') != precision:
        self.store.say(precision=precision, purge=True)  # `settle` builds them anew
    except BaseException:
      self.close()
      raise

  def _open_remote(self, address: str) -> QdrantVectors | None:
    known = self.store.said('qdrant')
    if known is None:  # decided once, when the index is begun
      self.store.say(qdrant=address, name=secrets.token_hex(6))
    elif address and address != known:
      raise UserError(
        f'{self.folder} has its vectors {f"at {known}" if known else "in its folder"}: pass another '
        f'--index to have them at --qdrant={address}'
      )
    return open_remote(self.store, self._embedder)

  def _begin(self, encoder: str, reembed: bool, progress: Progress | None) -> None:
    mine = {'embedder': self._embedder.name, 'encoder': encoder, 'size': self._embedder.size}
    mine |= {'pooling': self._embedder.pooling}
    known = self.store.said('embedder')
    if known is None:
      self.store.add_table(self._table)
      self.store.say(**mine)
    elif known != self._embedder.name and not reembed:
      raise UserError(
        f'{self.folder} was built with another encoder ({self.store.said("encoder")}, vectors of '
        f'{self.store.said("size")} numbers; this one has {self._embedder.size}): pass that --encoder, '
        'another --index, or --reembed to make all vectors anew'
      )
    elif known != self._embedder.name:
      self._reembed(progress)
      self.compact(**mine)
    if self.store.tables() != [self._table]:
      self.store.keep_table(self._table)

  def _reembed(self, progress: Progress | None) -> None:
    """Vectors of all posts beside the old ones, which are searched meanwhile; goes on if it was cut off."""
    self.store.add_table(self._table)
    while len(numbers := self.store.missing(self._table, TOGETHER)):
      found = self.store.documents(numbers.tolist())
      vectors = self._embedder.embed([found[number].whole for number in numbers.tolist()])
      self.store.put_vectors(self._table, numbers, vectors)
      if progress is not None:
        progress(len(numbers), len(numbers))

  @property
  def generation(self) -> Path:
    return generation(self.folder, self.store.said('generation', 0))

  @property
  def _written(self) -> Keywords:
    assert self._words is not None
    return self._words

  @property
  def _table(self) -> str:
    return f'vectors_{self._embedder.name}'

  def close(self) -> None:
    if self._words is not None:
      self._words.close()
    if self._remote is not None:
      self._remote.close()
    self.store.close()
    self._held.close()

  def __enter__(self) -> 'Index':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def add(self, documents: Iterable[Document], progress: Progress | None = None) -> Counts:
    """Has these posts, each in its latest version; what is there already is not embedded again.

    Every TOGETHER of them are one change, so that a run that was cut off goes on where it was.
    """
    counts = Counts()
    for some in _batched(documents):
      before = counts
      counts = self._add(some, counts)
      if progress is not None:
        progress(counts.added - before.added, counts.given - before.given)
    return counts

  def _add(self, some: Sequence[Document], counts: Counts) -> Counts:
    begun = time.monotonic()
    latest = {document.id: document for document in some}
    banned = self.store.banned(list(latest))
    wanted = {id: one for id, one in latest.items() if id not in banned}
    known = self.store.known(list(wanted))
    new = [one for id, one in wanted.items() if id not in known or known[id][1] != one]
    delete = [known[one.id][0] for one in new if one.id in known]
    if new:
      vectors = self._vectors_of(new, known)
      self.store.update(
        'add', add=new, vectors=vectors, delete=delete, table=self._table, **self.spent
      )
      self._follow()
      self.spent['index_seconds'] += time.monotonic() - begun
    return counts.plus(
      given=len(some),
      repeated=len(some) - len(latest),
      banned=len(banned),
      added=len(new),
      changed=len(delete),
      kept=len(wanted) - len(new),
    )

  def _vectors_of(
    self, new: Sequence[Document], known: Mapping[str, tuple[int, Document]]
  ) -> np.ndarray:
    """f32 [new, D]; a post whose text is as it was keeps its vector."""
    vectors = np.zeros((len(new), self._embedder.size), np.float32)
    is_same = np.array([one.id in known and known[one.id][1].whole == one.whole for one in new])
    same, others = np.flatnonzero(is_same), np.flatnonzero(~is_same)
    if len(same):
      numbers = np.array([known[new[row].id][0] for row in same.tolist()], np.int64)
      found, old = self.store.vectors(numbers, self._table)
      vectors[same] = old[np.searchsorted(found, numbers)]
    if len(others):
      begun = time.monotonic()
      vectors[others] = self._embedder.embed([new[row].whole for row in others.tolist()])
      self.spent['embed_seconds'] += time.monotonic() - begun
      self.spent['embedded'] += len(others)
    return vectors

  def delete(self, ids: Iterable[str], *, forever: bool = False) -> int:
    """Has none of these posts; how many there were.

    Args:
      forever: they are banned, and nothing of them stays in any file of the index.
    """
    deleted = 0
    for some in _batched(dict.fromkeys(ids)):
      numbers = [number for number, _ in self.store.known(some).values()]
      fresh = set(some) - self.store.banned(some) if forever else set()
      if numbers or fresh:
        said: dict[str, Any] = {'purge': True} if forever else {}
        self.store.update('delete', delete=numbers, ban=sorted(fresh), **said)
        self._follow()
      deleted += len(numbers)
    if self.store.said('purge'):
      self.compact()
    return deleted

  def _follow(self) -> None:
    """Has the words go as far as the journal."""
    seq, done = self.store.seq, self.store.said('words_seq', 0)
    if seq == done:
      return
    gone, numbers = self.store.gone(done).tolist(), self.store.numbers(done).tolist()
    for start in range(0, max(len(numbers), 1), _READ):
      add = self.store.documents(numbers[start : start + _READ])
      self._written.update(add, gone if start == 0 else [])
      if self._remote is not None and self._table in self.store.tables():
        self._remote.add(*self.store.vectors(np.array(list(add), np.int64), self._table))
    if self._remote is not None:
      self._remote.remove(np.array(gone, np.int64))
    self.store.say(words_seq=seq)

  def settle(self) -> None:
    """Builds words and vectors anew where too much has changed since that was done, or some is lost."""
    done, purge = self.store.said('vectors_seq'), self.store.said('purge')
    lost = len(self._written) != self.store.count
    lost |= self._remote is None and not (self.generation / 'vectors.faiss').is_file()
    changed = len(self.store.numbers(done or 0)) + len(self.store.gone(done or 0))
    if done is None or purge or lost or changed > _STALE * self.store.count:
      self.compact()

  def compact(self, **said: Any) -> None:
    """Builds words and vectors anew, beside the old ones, and then has all use the new ones at once.

    Args:
      said: see `Store.say`.
    """
    begun, seq, old = time.monotonic(), self.store.seq, self.generation
    number = self.store.said('generation', 0) + 1
    new = generation(self.folder, number)
    words, vectors = Keywords(new / 'words', write=True), self._remote or self._empty_vectors()
    numbers = self.store.numbers()
    for start in range(0, len(numbers), _READ):
      some = numbers[start : start + _READ]
      words.update(self.store.documents(some.tolist()), [])
      vectors.add(*self.store.vectors(some, self._table))
    if isinstance(vectors, Vectors):
      vectors.save(new / 'vectors.faiss')
    else:
      vectors.remove(self.store.gone())
    self._written.close()
    self._words = words
    self.spent['index_seconds'] += time.monotonic() - begun
    said |= {'words_seq': seq, 'vectors_seq': seq, 'purge': False, **self.spent}
    self.store.say(generation=number, **said)
    self.store.forget()
    shutil.rmtree(old, ignore_errors=True)

  def _empty_vectors(self) -> Vectors:
    sample, numbers = None, self.store.numbers()
    if len(numbers) > GRAPH:
      chosen = np.random.default_rng(0).choice(numbers, _SAMPLE, replace=False)
      sample = self.store.vectors(chosen, self._table)[1]
    precision: Precision = self.store.said('precision', 'float32')
    return build_vectors(len(numbers), self._embedder.size, sample, precision)


def generation(folder: Path, number: int) -> Path:
  """Where words and vectors are that were built together."""
  return folder / f'generation-{number}'


def open_remote(store: Store, embedder: Embedder) -> QdrantVectors | None:
  """The vectors of an index that has them on a Qdrant server."""
  address = store.said('qdrant')
  if not address:
    return None
  name = f'lmjax-{store.said("name")}-{embedder.name}'
  return QdrantVectors(address, name, embedder.size)


def from_posts(posts: Iterable[Post]) -> Iterator[Document]:
  """Posts as they are indexed; one without an id is known by a hash of its author and text."""
  for post in posts:
    told = f'{post.author}\0{post.text}'.encode()
    id = post.id or hashlib.blake2b(told, digest_size=12).hexdigest()
    yield Document(id, post.text, post.title, post.author, post.time, post.language, post.likes)


def _batched(items: Iterable) -> Iterator[list]:
  left = iter(items)
  while some := list(itertools.islice(left, TOGETHER)):
    yield some
