"""Vectors on Qdrant, embedded here, are found as those in memory are."""

import pytest
from small_encoder import write_encoder
from small_posts import make_posts

from lmjax.core.errors import UserError
from lmjax.interop.encoder import load_encoder
from lmjax.search.embed import Embedder
from lmjax.search.index import Index
from lmjax.search.query import parse
from lmjax.search.searcher import Searcher

pytest.importorskip('qdrant_client')


def test_an_index_on_qdrant_answers_as_one_in_memory_does(tmp_path):
  encoder = str(write_encoder(tmp_path / 'bert'))
  embedder, posts, answers = Embedder(load_encoder(encoder)), make_posts(40), []
  for name, qdrant in (('memory', ''), ('remote', str(tmp_path / 'qdrant'))):
    with Index(tmp_path / name, embedder, encoder, qdrant=qdrant) as index:
      index.add(posts[:30])
      index.settle()
      index.add(posts[30:])
      index.delete(['p3', 'p35'])
    searcher = Searcher(tmp_path / name)
    vector = searcher.embed(['cats at night'])[0]
    hits, _ = searcher.hits(parse('cats at night -fish'), 100)
    told = [(hit.document.id, round(hit.score, 4)) for hit in hits]
    answers.append((told, searcher.nearest(vector, 10).tolist(), searcher.count))
    searcher.close()
  assert answers[0] == answers[1]
  assert answers[0][2] == 38


def test_a_server_that_does_not_answer_is_told(tmp_path):
  encoder = str(write_encoder(tmp_path / 'bert'))
  embedder = Embedder(load_encoder(encoder))
  with pytest.raises(
    UserError, match='Qdrant at http://127.0.0.1:9 does not do as asked .*: check'
  ):
    Index(tmp_path / 'index', embedder, encoder, qdrant='http://127.0.0.1:9')
