"""Vectors of an index: the nearest of them by cosine, by the library faiss.

D size of a vector, S posts.
"""

from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from lmjax.core.errors import UserError
from lmjax.search.sets import EXTRA

FLAT, GRAPH = 20_000, 2_000_000  # posts up to which all are looked at, or a graph is walked
_LINKS, _BUILD, _WALK = (
  24,
  100,
  160,
)  # of the graph: links of a post, beam when it is built and walked
_BITS, _SAMPLE = 8, 256  # of a piece of a compressed vector; posts that teach a list
_LOOKED = 128  # lists that a search reads


Precision = Literal['float32', 'int8', 'binary']
_SIGMAS = 6.0  # numbers of a vector are kept up to so many times 1 / sqrt(D), their usual size


class Nearest(Protocol):
  """Vectors by number."""

  @property
  def kind(self) -> str:
    """Its name."""
    ...

  def __len__(self) -> int: ...

  def add(self, numbers: np.ndarray, vectors: np.ndarray) -> None:
    """Numbers i64 [S], not there yet, and their vectors f32 [S, D] of length 1."""
    ...

  def remove(self, numbers: np.ndarray) -> None:
    """Numbers i64, there or not."""
    ...

  def nearest(self, vector: np.ndarray, count: int) -> np.ndarray:
    """i64: numbers of about the `count` nearest to a vector f32 [D], the nearest first."""
    ...


class Vectors:
  """A `Nearest` in memory: flat, a graph (HNSW), signs alone (LSH) or compressed lists (IVF-PQ).

  Of what is removed faiss's graphs keep the links, so it is only skipped: build anew now and then.
  """

  def __init__(self, index: Any) -> None:
    self._faiss, self._index = faiss(), index
    self._dead = np.zeros(0, np.int64)

  def __len__(self) -> int:
    return self._index.ntotal - len(self._dead)

  @property
  def kind(self) -> str:
    inner = self._faiss.downcast_index(self._index.index)
    return type(inner).__name__.removeprefix('Index')

  def add(self, numbers: np.ndarray, vectors: np.ndarray) -> None:
    if len(numbers):
      self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), numbers)

  def remove(self, numbers: np.ndarray) -> None:
    held = self._faiss.vector_to_array(self._index.id_map)
    self._dead = np.union1d(self._dead, np.intersect1d(held, numbers))

  def nearest(self, vector: np.ndarray, count: int) -> np.ndarray:
    count = min(count, len(self))
    if count < 1:
      return np.zeros(0, np.int64)
    library, inner = self._faiss, self._faiss.downcast_index(self._index.index)
    more = {}
    if isinstance(inner, library.IndexLSH):  # takes no settings
      return self._living(vector, count)
    if len(self._dead):
      dead = library.IDSelectorBatch(self._dead)
      more = {'sel': library.IDSelectorNot(dead)}
    if isinstance(inner, library.IndexHNSW):
      settings = library.SearchParametersHNSW(efSearch=max(_WALK, count), **more)
    elif isinstance(inner, library.IndexIVF):
      settings = library.SearchParametersIVF(nprobe=_LOOKED, **more)
    else:
      settings = library.SearchParameters(**more)
    query = np.ascontiguousarray(vector[None], np.float32)
    _, found = self._index.search(query, count, params=settings)
    return found[0][found[0] >= 0]

  def _living(self, vector: np.ndarray, count: int) -> np.ndarray:
    """`nearest`, of more than are wanted, without those that were removed."""
    query = np.ascontiguousarray(vector[None], np.float32)
    _, found = self._index.search(query, min(count + len(self._dead), self._index.ntotal))
    return found[0][~np.isin(found[0], self._dead)][:count]

  def save(self, path: Path) -> None:
    """Writes what `load_vectors` reads; without anything removed."""
    try:
      self._faiss.write_index(self._index, str(path))
    except RuntimeError as error:
      raise UserError(
        f'{path} cannot be written ({_first(error)}): make room and try again'
      ) from None


def build_vectors(
  count: int, size: int, sample: np.ndarray | None = None, precision: Precision = 'float32'
) -> Vectors:
  """An empty one that suits `count` posts.

  Args:
    sample: f32 [S, D], some of them, which lists are learnt from where there are many.
    precision: int8 keeps a byte of each number, binary its sign alone, all of which are compared. What is
      found is to be put in order by the vectors themselves.
  """
  library = faiss()
  if precision == 'binary':
    inner = library.IndexLSH(size, size, False, False)
  elif count <= GRAPH or sample is None:
    inner = _exact(library, size, precision) if count <= FLAT else _graph(library, size, precision)
    if precision == 'int8':
      most = min(1.0, _SIGMAS / size**0.5)
      inner.train(np.array([[-most] * size, [most] * size], np.float32))
  else:
    lists = min(int(4 * count**0.5), len(sample) // 39)  # faiss wants 39 for each
    pieces = next(n for n in (48, 32, 16, 8, 4, 2, 1) if size % n == 0)
    coarse = library.IndexFlatIP(size)
    inner = library.IndexIVFPQ(coarse, size, lists, pieces, _BITS, library.METRIC_INNER_PRODUCT)
    inner.train(sample[: lists * _SAMPLE])
  return Vectors(library.IndexIDMap2(inner))


def _exact(library: Any, size: int, precision: Precision) -> Any:
  if precision == 'int8':
    kind = library.ScalarQuantizer.QT_8bit_uniform
    return library.IndexScalarQuantizer(size, kind, library.METRIC_INNER_PRODUCT)
  return library.IndexFlatIP(size)


def _graph(library: Any, size: int, precision: Precision) -> Any:
  if precision == 'int8':
    kind = library.ScalarQuantizer.QT_8bit_uniform
    made = library.IndexHNSWSQ(size, kind, _LINKS, library.METRIC_INNER_PRODUCT)
  else:
    made = library.IndexHNSWFlat(size, _LINKS, library.METRIC_INNER_PRODUCT)
  made.hnsw.efConstruction = _BUILD
  return made


def load_vectors(path: Path) -> Vectors:
  """UserError where the file is gone or damaged."""
  try:
    return Vectors(faiss().read_index(str(path)))
  except RuntimeError as error:
    raise UserError(
      f'{path} cannot be read ({_first(error)}): delete it and start search_posts with this --index'
    ) from None


def faiss() -> Any:
  """The library, or a UserError that names the extra."""
  try:
    import faiss
  except ImportError:
    raise UserError(EXTRA) from None
  return faiss


def _first(error: Exception) -> str:
  return str(error).strip().splitlines()[0][:200]
