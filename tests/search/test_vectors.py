"""Each kind of vectors finds about the nearest, nothing that was removed, and is the same when read again."""

import numpy as np
import pytest

from lmjax.core.errors import UserError
from lmjax.search import vectors as module
from lmjax.search.vectors import build_vectors, load_vectors

COUNT, SIZE = 3000, 16


@pytest.mark.parametrize(
  ('flat', 'graph', 'precision', 'kind', 'recall'),
  [
    (COUNT, COUNT, 'float32', 'FlatIP', 1.0),
    (1, COUNT, 'float32', 'HNSWFlat', 0.97),
    (1, 1, 'float32', 'IVFPQ', 0.8),
    (COUNT, COUNT, 'int8', 'ScalarQuantizer', 0.95),
    (1, COUNT, 'int8', 'HNSWSQ', 0.95),
    (1, 1, 'binary', 'LSH', 0.2),
  ],
)
def test_the_nearest_are_found(tmp_path, monkeypatch, flat, graph, precision, kind, recall):
  monkeypatch.setattr(module, 'FLAT', flat)
  monkeypatch.setattr(module, 'GRAPH', graph)
  rng = np.random.default_rng(0)
  drawn = rng.normal(size=(COUNT, SIZE)).astype(np.float32)
  drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
  numbers = np.arange(COUNT, dtype=np.int64) * 3 + 7
  made = build_vectors(COUNT, SIZE, drawn, precision)
  made.add(numbers, drawn)
  assert made.kind == kind
  made.save(tmp_path / 'vectors.faiss')
  found = load_vectors(tmp_path / 'vectors.faiss')
  removed = numbers[::2]
  found.remove(np.append(removed, 1))  # 1 is none of them
  assert len(found) == COUNT // 2
  queries = drawn[:50] + 0.05 * rng.normal(size=(50, SIZE)).astype(np.float32)
  left, theirs = numbers[1::2], drawn[1::2]
  hits = 0
  for query in queries:
    best = left[np.argsort(-(theirs @ query))[:10]]
    got = found.nearest(query, 10)
    assert not np.isin(got, removed).any()
    hits += len(np.intersect1d(best, got))
  assert hits / 500 >= recall


def test_a_damaged_file_is_refused(tmp_path):
  (tmp_path / 'vectors.faiss').write_bytes(b'nothing')
  with pytest.raises(UserError, match='cannot be read .* delete it and start search_posts with'):
    load_vectors(tmp_path / 'vectors.faiss')
