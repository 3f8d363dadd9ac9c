"""What teachers say of queries and documents: encoders, language models, functions."""

from pathlib import Path

import numpy as np
import pytest
from small_encoder import write_encoder
from small_models import random_params

from lmjax.core.errors import UserError
from lmjax.data.tokenizer import train
from lmjax.generate.score import score
from lmjax.interop.load import Loaded
from lmjax.models.transformer import Decoder
from lmjax.search.cross import likelihoods
from lmjax.search.embed import open_embedder
from lmjax.search.kept import kept
from lmjax.search.teacher import Triples, open_teacher

GIVEN = Triples(
  ['cats sleep', 'birds fly'],
  ['cats sleep all day', 'dogs run', 'birds fly at night', 'fish swim'],
  np.array([0, 2]),
  np.array([[1], [3]]),
  [{0}, {2}],
)
SOME, SHOWN = np.array([1, 0]), np.array([2, 0, 3, 1])


def test_an_encoder_scores_all_that_an_update_shows(tmp_path):
  name = str(write_encoder(tmp_path / 'bert'))
  teacher, embedder = open_teacher(name, 'cosine'), open_embedder(name)
  assert teacher is not None
  teach = teacher(GIVEN)
  queries, documents = embedder.embed(GIVEN.queries), embedder.embed(GIVEN.documents)
  np.testing.assert_allclose(teach(SOME, SHOWN), queries[SOME] @ documents[SHOWN].T, atol=1e-6)


def test_a_function_scores_queries_with_their_own_documents():
  teacher = open_teacher('small_encoder:shared_words', 'cosine')
  assert teacher is not None
  teach = teacher(GIVEN)
  expected = [[2, np.nan, 0, np.nan], [np.nan, 2, np.nan, 0]]
  np.testing.assert_array_equal(teach(SOME, SHOWN), expected)
  assert open_teacher('', 'cosine') is None


def test_a_teacher_that_is_none_is_refused():
  wrong = open_teacher('small_encoder:says_nothing', 'cosine')
  assert wrong is not None
  with pytest.raises(UserError, match='says_nothing did not return a number for each of 4 pairs'):
    wrong(GIVEN)
  with pytest.raises(UserError, match="--train.teacher=small_encoder:none: .* has no function 'no"):
    open_teacher('small_encoder:none', 'cosine')
  with pytest.raises(UserError, match="encoder 'nobody' is neither a folder nor an asset"):
    open_teacher('nobody', 'cosine')


def test_a_models_score_is_how_likely_it_finds_the_query(tmp_path, monkeypatch):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path))
  words = train(['cats sleep dogs run'] * 3, 300)
  model = Decoder(vocab=300, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48)
  loaded = Loaded(model, random_params(model), words, Path('tiny'), 0, None, (), None)
  found = likelihoods(loaded, GIVEN.queries, GIVEN.documents[:2])
  for query, document, mean in zip(GIVEN.queries, GIVEN.documents, found, strict=False):
    asked = words.encode_batch([f' {query}'])[0]
    before = words.encode_batch([document, '\n\nA search query that this text answers:'])
    given = np.concatenate([np.array(words.before, np.int32), *before])
    both = score(model, loaded.params, [np.concatenate([given, asked]), given])
    np.testing.assert_allclose(mean, (both[0] - both[1]) / len(asked), rtol=1e-4)


def test_what_was_computed_is_kept_under_all_that_it_depends_on(tmp_path, monkeypatch):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path))
  made = []

  def make():
    made.append(None)
    return np.full(2, len(made))

  first = kept('some', ['ab', 'c'], make)
  np.testing.assert_array_equal(kept('some', ['ab', 'c'], make), first)
  assert kept('some', ['a', 'bc'], make)[0] == 2
  assert kept('some', ['ab', 'c', ''], make)[0] == 3
