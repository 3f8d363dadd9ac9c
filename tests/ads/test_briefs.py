"""Which briefs are refused: lists written apart from the rules, and what a brief must be."""

from pathlib import Path

import pytest

from lmjax.ads.brief import Refused, parse_brief
from lmjax.ads.evaluate import JUDGED, BriefEval, measure_blocks
from lmjax.ads.policy import REASONS, judge_brief, rules
from lmjax.core.errors import UserError

LISTS = (Path(__file__).with_name('briefs.jsonl'), JUDGED)


@pytest.mark.parametrize('path', LISTS, ids=lambda path: path.stem)
def test_list_is_judged(tmp_path, path):
  report = BriefEval(briefs=str(path)).run(tmp_path)
  assert report['bad'] >= 60
  assert report['ordinary'] >= 60
  assert report['block_recall'] >= 0.9
  assert report['reason_accuracy'] >= 0.9
  assert report['false_block'] <= 0.05


def test_measures_count_as_they_say():
  report = measure_blocks(['hate', 'sexual', '', ''], ['hate', 'hate', '', 'hate'])
  assert (report['block_recall'], report['reason_accuracy'], report['false_block']) == (1, 0.5, 0.5)


def test_rules_are_those_of_the_reasons():
  assert set(rules()) == {*REASONS, 'special'} - {'invalid'}


@pytest.mark.parametrize(
  'product', ['cocaine', 'C0C41NE', 'c o c a i n e', 'c.o.c.a.i.n.e', 'сосаine', 'co\u200bcaine']
)
def test_disguised_words_are_read(product):
  assert judge_brief({'product': product}).reason == 'prohibited_goods'


@pytest.mark.parametrize(
  'audience', [{'religion': 'any church'}, {'interests': ['Jewish families']}]
)
def test_protected_audiences_are_refused(audience):
  finding = judge_brief({'product': 'Oat bread', 'audience': audience})
  assert finding.reason == 'protected_targeting'


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    ({'product': ' '}, 'product'),
    ({'audience': {'age': '18-30'}}, '18-24, 25-34'),
    ({'formats': ['300 by 250']}, '300x250'),
    ({'colours': ['#12']}, '#00aa77'),
    ({'fact': ['new']}, 'did you mean facts'),
    ({'facts': 'new'}, 'a list of texts'),
    ({'facts': ['new'] * 33}, '32 texts at most, not 33'),
    ({'must': ['new' * 200]}, '400 characters at most, not 600'),
    ({'tone': 'warm' * 200}, '400 characters at most, not 800'),
    ({'formats': ['8000x8000']}, '16,000,000 pixels together at most, not 64,000,000'),
  ],
)
def test_a_brief_that_is_none_says_why(change, said):
  with pytest.raises(Refused, match=said) as caught:
    parse_brief({'product': 'Oat bread', **change})
  assert caught.value.reason == 'invalid'


def test_a_list_of_another_form_is_refused(tmp_path):
  path = tmp_path / 'briefs.jsonl'
  path.write_text('{"brief": {"product": "Oat bread"}}\n')
  with pytest.raises(UserError, match='line 1'):
    BriefEval(briefs=str(path)).run(tmp_path)
