"""Audiences are sorted into groups, and a user's groups are added unless they aim at protected attributes."""

import json

import pytest

from lmjax.ads.audience import load_taxonomy
from lmjax.ads.brief import Audience
from lmjax.core.errors import UserError


def test_interests_stand_for_groups():
  audience = Audience(
    '25-34', ('trail running', 'stamps'), 'Scandinavian', 'mid', 'en-GB', 'female'
  )
  found = load_taxonomy().features(audience)
  assert found == (
    'age:25-34', 'interest:other', 'interest:outdoors', 'locale:en-gb', 'price:mid', 'style:minimal',
  )  # fmt: skip
  assert load_taxonomy().features(Audience()) == ()


def test_a_file_adds_groups_and_words(tmp_path):
  path = tmp_path / 'audiences.json'
  path.write_text(json.dumps({'interests': {'Sailing': ['Boats'], 'culture': ['stamps']}}))
  found = load_taxonomy(str(path)).features(Audience(interests=('small boats', 'stamps', 'dogs')))
  assert found == ('interest:culture', 'interest:pets', 'interest:sailing')


@pytest.mark.parametrize(
  ('content', 'said'),
  [
    ('{"interests": {"faith": ["mosque visits"]}}', 'protected attribute'),
    ('{"interests": ["boats"]}', 'regattas'),
    ('{"interest": {}}', 'did you mean interests'),
    ('[]', 'is no object'),
    ('{', 'cannot be read'),
  ],
)
def test_a_file_that_is_none_says_why(tmp_path, content, said):
  path = tmp_path / 'audiences.json'
  path.write_text(content)
  with pytest.raises(UserError, match=said):
    load_taxonomy(str(path))
