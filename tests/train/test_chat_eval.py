"""The task that measures models, on a tiny one, but for its questions; and its page."""

import json

import evaluated
import pytest

from lmjax.core.config import UserError
from lmjax.train.chat_eval import ChatEval
from lmjax.train.evaluation_page import page


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return evaluated.write_folder(tmp_path_factory.mktemp('model') / 'tiny')


@pytest.fixture
def texts(tmp_path):
  path = tmp_path / 'texts.jsonl'
  rows = [{'text': text} for text in ('a text', 'one more', 'Жук', 'a <b>bold</b> text')]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def test_a_model_beside_itself_differs_in_nothing(folder, texts, tmp_path):
  task = ChatEval(
    checkpoint=folder,
    against=folder,
    tasks=(),
    texts=texts,
    prompts=texts,
    toxicity='evaluated:count_letters',
    judge='evaluated:prefer_first',
    max_tokens=8,
    rounds=100,
  )
  report = task.run(tmp_path)
  names = {'bits_per_byte', 'toxicity', 'toxic_share', 'win_rate'}
  assert set(report['after']) == set(report['before']) == set(report['differences']) == names
  for name in names - {'win_rate'}:
    assert report['after'][name] == report['before'][name]
    assert report['differences'][name]['p'] == 1.0
  assert report['after']['win_rate'] == 1 - report['before']['win_rate']
  assert report['items']['bits_per_byte'] == 4
  assert [row['prompt'] for row in report['samples']][:2] == ['a text', 'one more']
  html = (tmp_path / 'evaluation.html').read_text(encoding='utf-8')
  assert '&lt;b&gt;bold' in html
  assert '<b>bold' not in html


@pytest.mark.parametrize(
  ('flags', 'told'),
  [
    ({'tasks': ()}, 'nothing to measure: pass --tasks, --texts, --toxicity or --judge'),
    ({'tasks': (), 'judge': 'a:b'}, 'pass --against=CHECKPOINT too'),
    ({'tasks': (), 'toxicity': 'nowhere:f'}, "--toxicity=nowhere:f: there is no module 'nowhere'"),
    ({'tasks': (), 'texts': 'none.jsonl'}, 'none.jsonl cannot be read'),
  ],
)
def test_wrong_flags_are_told_before_a_model_is_loaded(flags, told, tmp_path):
  with pytest.raises(UserError, match=told):
    ChatEval(checkpoint='nowhere', **flags).run(tmp_path)


def test_an_unknown_set_is_told():
  with pytest.raises(UserError, match='tasks=boolqq: there is no such set: did you mean boolq'):
    ChatEval(tasks=('boolqq',))


def test_a_classifier_that_gives_other_numbers_is_told(folder, texts, tmp_path):
  task = ChatEval(
    checkpoint=folder, tasks=(), prompts=texts, toxicity='evaluated:say_one_number', max_tokens=2
  )
  with pytest.raises(UserError, match='gave 1 numbers for 4 texts'):
    task.run(tmp_path)


def test_the_page_loads_nothing_and_tells_better_from_worse():
  report = {
    'before': {'boolq/acc': 0.5, 'bits_per_byte': 2.4},
    'after': {'boolq/acc': 0.4, 'bits_per_byte': 1.6, 'new': 1.0},
    'differences': {
      'boolq/acc': {'difference': -0.1, 'low': -0.15, 'high': -0.05, 'p': 0.001},
      'bits_per_byte': {'difference': -0.8, 'low': -0.9, 'high': -0.7, 'p': 0.001},
    },
    'trainable_params': 1000,
  }
  html = page(report)
  assert '1 better, 1 worse' in html
  assert 'http' not in html
  assert '<script' not in html
  assert html.count('<rect') == 5


def test_the_page_of_one_model_needs_no_other():
  html = page({'after': {'bits_per_byte': 2.0}})
  assert 'Evaluation' in html
  assert 'before' not in html.partition('</style>')[2].replace('before, 95%', '').split('<table')[0]
