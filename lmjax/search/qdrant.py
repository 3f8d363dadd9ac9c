"""Vectors of an index on a Qdrant server, for more posts than one machine holds.

The same interface as in memory (`vectors.Nearest`). The writer keeps a collection as far as the journal;
who searches only asks. A folder in place of an address is Qdrant's embedded mode, for one process.
"""

from typing import Any

import numpy as np

from lmjax.core.errors import UserError

_TOGETHER = 512  # vectors of a request
EXTRA = "Qdrant needs its client: pip install 'lmjax[qdrant]'"


class QdrantVectors:
  """A collection of vectors by number.

  Args:
    address: http://HOST:PORT of a server, or a folder.
    collection: its name; made where there is none.
    size: D.

  Raises:
    UserError: the client is not installed, or no server answers.
  """

  kind = 'Qdrant'

  def __init__(self, address: str, collection: str, size: int) -> None:
    try:
      import qdrant_client
      from qdrant_client import models
    except ImportError:
      raise UserError(EXTRA) from None
    self._models, self._name, self._address = models, collection, address
    try:
      if '://' in address:
        self._client = qdrant_client.QdrantClient(url=address, check_compatibility=False)
      else:
        self._client = qdrant_client.QdrantClient(path=address)
      if not self._client.collection_exists(collection):
        made = self._models.VectorParams(size=size, distance=self._models.Distance.DOT)
        self._client.create_collection(collection, vectors_config=made)
    except Exception as error:  # of httpx, grpc, portalocker or its own
      raise self._told(error) from None

  def __len__(self) -> int:
    return self._asked(lambda: self._client.count(self._name, exact=True).count)

  def add(self, numbers: np.ndarray, vectors: np.ndarray) -> None:
    for start in range(0, len(numbers), _TOGETHER):
      some = slice(start, start + _TOGETHER)
      points = [
        self._models.PointStruct(id=number, vector=vector)
        for number, vector in zip(numbers[some].tolist(), vectors[some].tolist(), strict=True)
      ]
      self._asked(lambda points=points: self._client.upsert(self._name, points, wait=True))

  def remove(self, numbers: np.ndarray) -> None:
    if len(numbers):
      chosen = self._models.PointIdsList(points=numbers.tolist())
      self._asked(lambda: self._client.delete(self._name, chosen, wait=True))

  def nearest(self, vector: np.ndarray, count: int) -> np.ndarray:
    if count < 1:
      return np.zeros(0, np.int64)
    query = vector.tolist()
    found = self._asked(
      lambda: self._client.query_points(self._name, query=query, limit=count, with_payload=False)
    )
    return np.array([point.id for point in found.points], np.int64)

  def close(self) -> None:
    self._client.close()

  def _asked(self, ask: Any) -> Any:
    try:
      return ask()
    except Exception as error:  # of httpx, grpc or its own
      raise self._told(error) from None

  def _told(self, error: Exception) -> UserError:
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return UserError(
      f'Qdrant at {self._address} does not do as asked ({said}): check that it runs and can be reached'
    )
