"""Copy that says anything its brief does not is never shown, and templates say nothing else."""

import pytest

from lmjax.ads.brief import Refused, parse_brief
from lmjax.ads.creative import Copy, find_problems, limits_of
from lmjax.ads.template import write_templates

BRIEF = parse_brief(
  {
    'product': 'Harbour oat bread',
    'facts': ['free delivery over 30 euros', 'baked every morning', 'no added sugar', 'from 3.50 euros', '20% off until Sunday', 'up to 7 days fresh'],
    'must': ['oat'],
    'must_not': ['cheap'],
    'formats': ['300x250', '1200x628'],
  }
)  # fmt: skip
LIMITS = limits_of(BRIEF.formats, BRIEF.product)


def problems(body, headline='Harbour oat bread', action='See more'):
  return [tuple(one) for one in find_problems(BRIEF, Copy(headline, body, action), LIMITS)]


@pytest.mark.parametrize(
  'body',
  [
    'Baked every morning. No added sugar.',
    'Free delivery over 30 euros.',
    'Discover bread from 3,50 euros.',
    '20% off until Sunday, and up to seven days fresh!',
    '',
  ],
)
def test_what_the_brief_says_may_be_said(body):
  assert problems(body) == []


@pytest.mark.parametrize(
  ('body', 'kind', 'words'),
  [
    ('Baked with added sugar', 'claim', 'sugar'),
    ('No sugar', 'claim', 'no sugar'),
    ('Organic and baked every morning', 'claim', 'organic'),
    ('Only 3.50 euros', 'figure', '3.50 euros'),
    ('From 3.50 dollars', 'figure', '3.50 dollars'),
    ('20% sugar', 'figure', '20% sugar'),
    ('Up to ten days fresh', 'figure', '10 days fresh'),
    ('Free delivery', 'offer', 'over 30 euros'),
    ('20% off bread', 'offer', 'until Sunday'),
    ('Baked every morning. Baked every morning.', 'repeat', 'baked'),
    ('Make it yours. Make it yours!', 'repeat', 'make it yours'),
    ('Never baked', 'claim', 'never bak'),
    ('Ch3ap bread', 'must_not', 'cheap'),
    ('c-h-e-a-p', 'must_not', 'cheap'),
    ('Bread for the morning and the day and the evening and the week and the season and the home and more', 'length', 'body'),
    ('Kill them', 'policy', 'violence'),
  ],
)  # fmt: skip
def test_what_it_does_not_say_is_found(body, kind, words):
  assert any(one[0] == kind and words in one[1] for one in problems(body)), problems(body)


def test_must_words_are_asked_for():
  assert problems('Baked every morning', headline='Harbour bread') == [('must', 'oat')]
  assert ('empty', 'headline') in problems('', headline='')


def test_limits_are_those_of_the_smallest_format():
  assert limits_of([(1200, 628), (728, 90)]) == limits_of([(728, 90)])
  assert limits_of([(728, 90)], 'x' * 50).headline == 50
  with pytest.raises(Refused, match='at most 60'):
    limits_of([], 'x' * 61)


def test_templates_are_faithful_and_differ():
  copies = write_templates(BRIEF, LIMITS, 6)
  assert len(set(copies)) == 6
  assert not any(find_problems(BRIEF, copy, LIMITS) for copy in copies)
  assert write_templates(parse_brief({'product': 'Lamp'}), LIMITS, 4)
