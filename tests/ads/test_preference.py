"""Preferences are learnt per audience and calibrated; Thompson sampling loses fewer clicks."""

import json
import xml.etree.ElementTree as tree

import numpy as np
import pytest

from lmjax.ads.allocate import Allocate, Simulate, read_clicks, simulate
from lmjax.ads.audience import load_taxonomy
from lmjax.ads.brief import Audience
from lmjax.ads.response import ResponseTrain, best_temperature, load_response, measure_response
from lmjax.core.errors import UserError


def write_pairs(path, rows=240):
  """The young prefer `bold` copy and others `calm`, seven times in eight."""
  random = np.random.default_rng(0)
  with path.open('w') as file:
    for _ in range(rows):
      age = random.choice(['18-24', '55+'])
      noun = random.choice(['lamp', 'bike', 'desk'])
      texts = [f'a bold {noun}', f'a calm {noun}']
      swap = (age == '55+') ^ (random.random() < 1 / 8)
      chosen, rejected = texts[::-1] if swap else texts
      row = {'audience': {'age': str(age)}, 'chosen': chosen, 'rejected': rejected}
      file.write(json.dumps(row) + '\n')
  return str(path)


def test_a_preference_is_learnt_for_each_audience(tmp_path):
  task = ResponseTrain(pairs=write_pairs(tmp_path / 'pairs.jsonl'), buckets=4096, steps=20)
  report = task.run(tmp_path)
  assert report['accuracy'] >= 0.75
  assert report['calibration_error'] <= 0.15
  model = load_response(str(tmp_path))
  for age, better in (('18-24', 0), ('55+', 1)):
    texts = ['a bold chair', 'a calm chair']
    assert np.argmax(model.scores(Audience(age), texts, load_taxonomy())) == better


def test_calibration_is_measured():
  gaps = np.array([np.log(3.0)] * 75 + [-np.log(3.0)] * 25)  # told .75, and right 75 times of 100
  figures = measure_response(gaps)
  assert figures['accuracy'] == 0.75
  assert figures['calibration_error'] == pytest.approx(0.0, abs=1e-9)
  assert measure_response(5 * gaps)['calibration_error'] > 0.2
  assert best_temperature(5 * gaps) == pytest.approx(5.0, rel=0.05)


def test_thompson_loses_fewer_clicks(tmp_path):
  report = Simulate(rates=(0.1, 0.5), impressions=400, runs=3).run(tmp_path)
  assert report['regret_in_turn'] == pytest.approx(80.0)
  assert report['regret_thompson'] < 20.0
  assert tree.parse(tmp_path / 'regret.svg').getroot().tag.endswith('svg')
  equal = simulate(np.array([0.3, 0.3]), 50, np.random.default_rng(0), thompson=True)
  assert equal[-1] == 0.0


def test_a_click_log_says_what_to_show(tmp_path):
  path = tmp_path / 'clicks.jsonl'
  lines = [('a', 1, 50), ('a', 0, 50), ('b', True, 5), ('b', False, 95)]
  rows = [
    json.dumps({'creative': n, 'clicked': c, 'place': 'top'}) for n, c, k in lines for _ in range(k)
  ]
  path.write_text('\n'.join(rows))
  clicks = read_clicks(str(path))
  assert (clicks.names, clicks.clicked_C.tolist()) == (['a', 'b'], [50, 5])
  first, second = Allocate(clicks=str(path)).run(tmp_path)['creatives']
  assert first['share'] > 0.99
  assert first['share'] + second['share'] == pytest.approx(1.0)


def test_mistakes_are_named(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"creative": "a"}')
  with pytest.raises(UserError, match='line 1'):
    read_clicks(str(path))
  path.write_text('{"audience": {"age": "young"}, "chosen": "a", "rejected": "b"}')
  with pytest.raises(UserError, match='18-24'):
    ResponseTrain(pairs=str(path)).run(tmp_path)
  with pytest.raises(UserError, match='at least two'):
    Simulate(rates=(0.1,)).run(tmp_path)
  with pytest.raises(UserError, match='response_train'):
    load_response(str(tmp_path))
