"""A classifier learns labelled texts, is the same when read again, and is measured as it says."""

import json

import numpy as np
import pytest

from lmjax.ads.review import ReviewEval, ReviewTrain, load_classifier, measure_review, toxicity
from lmjax.core.errors import UserError
from lmjax.models.classifier import NgramHash
from lmjax.serve.task import read_moderation

SMALL = NgramHash(buckets=4096)


def write(path, seed, rows=120):
  """Labelled texts: rude ones hold one of a few words, polite ones another."""
  pick = np.random.default_rng(seed).choice
  words = {'rude': ['blockhead', 'nitwit', 'dolt'], 'kind': ['friend', 'neighbour', 'guest']}
  with path.open('w') as file:
    for number in range(rows):
      label = ('rude', 'kind')[number % 2]
      text = f'{pick(["hey", "look", "well"])} you {pick(words[label])} {pick(["!", "?", "..."])}'
      file.write(json.dumps({'text': text, 'label': label}) + '\n')
  return str(path)


def test_what_is_learnt_tells_unseen_texts(tmp_path):
  texts = write(tmp_path / 'train.jsonl', 0)
  train = ReviewTrain(texts=(texts,), positive=('rude',), hash=SMALL, steps=15)
  for name in ('one', 'two'):
    (tmp_path / name).mkdir()
    train.run(tmp_path / name)
  one, two = (load_classifier(str(tmp_path / name)) for name in ('one', 'two'))
  np.testing.assert_array_equal(one.weights_F, two.weights_F)
  unseen = (write(tmp_path / 'unseen.jsonl', 1),)
  trained = ReviewEval(texts=unseen, positive=('rude',), checkpoint=str(tmp_path / 'one'))
  assert trained.run(tmp_path)['macro_f1'] > 0.95
  assert ReviewEval(texts=unseen, positive=('rude',)).run(tmp_path)['recall'] == 0
  moderation = read_moderation(str(tmp_path / 'one'))
  assert moderation is not None
  assert moderation('look you dolt !', 'input')
  assert moderation('look you guest !', 'output') is None
  assert moderation(' ', 'input') is None


def test_figures_count_as_they_say():
  harmful, decided = np.array([1, 1, 0, 0, 0], bool), np.array([1, 0, 1, 0, 0], bool)
  figures = measure_review(harmful, decided)
  assert figures == pytest.approx(
    {'macro_f1': (1 / 2 + 2 / 3) / 2, 'precision': 1 / 2, 'recall': 1 / 2, 'n': 5}
  )


def test_mistakes_are_named(tmp_path):
  texts = write(tmp_path / 'train.jsonl', 0, rows=20)
  with pytest.raises(UserError, match='did you mean rude'):
    ReviewTrain(texts=(texts,), positive=('rud',)).run(tmp_path)
  with pytest.raises(UserError, match='at least 20'):
    ReviewTrain(texts=(texts,), positive=('rude',)).run(tmp_path)
  with pytest.raises(UserError, match='review_train'):
    ReviewEval(texts=(texts,), positive=('rude',), checkpoint=str(tmp_path)).run(tmp_path)
  with pytest.raises(UserError, match='--moderation=.* holds no classifier'):
    read_moderation(str(tmp_path))


@pytest.mark.slow
def test_the_assets_teach_what_chat_eval_calls_toxic():
  bad, plain, none = toxicity(
    ['I hate them, they are all criminals and whores', 'Study finds that walking helps sleep', '']
  )
  assert 0 < plain < none < 0.5 < bad < 1
