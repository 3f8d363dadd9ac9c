"""The query language: what is understood, and what is refused with which words."""

import pytest

from lmjax.search.query import Filters, QueryError, parse


def test_every_part_of_a_query_is_understood():
  found = parse(
    'sugar "heart attack" from:@NYT from:bbc since:2024-01-31 until:2024-03 lang:EN has:link '
    '#Health -salt -"low fat" -from:spam -#ads'
  )
  assert found.text == 'sugar heart attack Health'
  assert found.filters == Filters(
    authors=('nyt', 'bbc'),
    languages=('en',),
    tags=('health',),
    phrases=('heart attack',),
    since=1_706_659_200.0,
    until=1_709_251_200.0,
    link=True,
    without_authors=('spam',),
    without_tags=('ads',),
    without_words=('salt', 'low fat'),
  )


@pytest.mark.parametrize(
  ('asked', 'text'),
  [
    ('at 10:30 https://x.org/a covid-19', 'at 10:30 https://x.org/a covid-19'),
    ('a"b c"d', 'a b c d'),
    ('5 - 3', '5 - 3'),
    ('what:', 'what:'),
    ('от:него 東京', 'от:него 東京'),
  ],
)
def test_what_only_looks_like_a_filter_is_words(asked, text):
  assert parse(asked).text == text


def test_filters_may_stand_alone():
  assert parse('-has:link').filters == Filters(link=False)
  assert parse('from:ada').text == ''


@pytest.mark.parametrize(
  ('asked', 'told'),
  [
    ('', 'the query is empty: give words'),
    (' \n', 'the query is empty'),
    ('x' * (1 << 20), 'the query has 1,048,576 characters, and 1,000 are allowed: shorten it'),
    ('a\x00b', r'character 2 of the query is the control character U\+0000: remove it'),
    ('a "b', r'a quote \("\) is opened and not closed: close it'),
    ('form:ada', r'there is no filter form: \(did you mean from\?\); there are from:, .*: put it'),
    ('from: ada', 'from: has nothing after it: write it as from:VALUE'),
    ('since:yesterday', 'since:yesterday is no date: write it as 2024-01-31, 2024-01 or 2024'),
    ('-since:2024', '-since: means nothing: use until:'),
    ('has:picture', 'has:picture is not known: use has:link'),
    ('since:2025 until:2024', 'since: is not before until:, so nothing can be found'),
    ('""', 'nothing is asked for: give words'),
  ],
)
def test_a_query_that_is_wrong_is_refused(asked, told):
  with pytest.raises(QueryError, match=told):
    parse(asked)
