"""A brief becomes a folder of reviewed creatives; a person decides, on what was reviewed alone."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from lmjax.ads.brief import Refused, parse_brief
from lmjax.ads.creative import Copy, Limits, Problem, find_problems, limits_of, vocabulary, wordings
from lmjax.ads.record import Decide, make_record
from lmjax.ads.studio import Studio
from lmjax.ads.writer import Plan, _filled, copy_schema, draw_copies, plan_copy
from lmjax.core.errors import UserError
from lmjax.core.task import write_json

BRIEF = {
  'product': 'Oat bread',
  'facts': ['baked every morning', 'no added sugar', '750 g'],
  'formats': ['300x250', '728x90'],
  'colours': ['#0a7'],
  'must_not': ['cheap'],
  'picture': 'loaf.png',
}


def make(folder, **change):
  """A run of templates alone, for a brief beside its picture."""
  image = Image.new('RGB', (90, 90), 'peru')
  image.putpixel((1, 1), (0, 0, 0))
  image.save(folder / 'loaf.png')
  path = folder / 'brief.json'
  path.write_text(json.dumps({**BRIEF, **change}))
  return Studio(brief=str(path), checkpoint='', candidates=2, output=str(folder / 'out'))


def test_facts_that_no_copy_has_room_for_are_told(tmp_path, capsys):
  facts = ['750 g', 'baked slowly ' * 20, '!!!']
  report = make(tmp_path, facts=facts).run(tmp_path)
  assert report['facts_unsaid'] == [facts[1]]
  assert "1 facts are in none of them, 'baked slowly" in capsys.readouterr().out


def test_a_brief_becomes_reviewed_creatives(tmp_path):
  report = make(tmp_path).run(tmp_path)
  assert [row['folder'] for row in report['creatives']] == ['01', '02']
  folder = tmp_path / 'out' / '01'
  record = json.loads((folder / 'review.json').read_text())
  names = [f'{size}.{kind}' for size in BRIEF['formats'] for kind in ('png', 'svg')]
  assert [image['file'] for image in record['images']] == names
  assert sorted(path.name for path in folder.iterdir()) == sorted(
    [*names, 'copy.json', 'review.json']
  )
  assert (record['verdict'], record['approval']['state']) == ('passed', 'pending')
  assert all(image['contrast'] >= 4.5 for image in record['images'])
  with Image.open(folder / '728x90.png') as image:
    assert image.size == (728, 90)
  assert 'Made with AI' not in (folder / '300x250.svg').read_text()  # no model had a part in it
  with pytest.raises(UserError, match='has creatives already'):
    make(tmp_path).run(tmp_path)

  Decide(review=str(folder), by='Kim').run(tmp_path)
  assert json.loads((folder / 'review.json').read_text())['approval']['by'] == 'Kim'
  (folder / '300x250.png').write_bytes(b'another')
  with pytest.raises(UserError, match='not the file that was reviewed'):
    Decide(review=str(folder), by='Kim').run(tmp_path)
  Decide(review=str(folder), by='Kim', state='rejected').run(tmp_path)


def test_what_was_blocked_cannot_be_approved(tmp_path):
  problem = Problem('figure', '12 kg')
  record = make_record(
    BRIEF, Copy('a', 'b', 'c'), made_by='x', problems=[problem], scores={}, images=[], disclosure=''
  )
  write_json(tmp_path / 'review.json', record)
  with pytest.raises(UserError, match='figure 12 kg'):
    Decide(review=str(tmp_path), by='Kim').run(tmp_path)


@pytest.mark.parametrize(
  ('change', 'error', 'said'),
  [
    ({'product': 'Heroin'}, Refused, 'prohibited_goods'),
    ({'product': 'Oat' * 30}, Refused, 'at most 60'),
    ({'picture': 'none.png'}, UserError, 'cannot be read'),
    ({'must': ['cheap bread']}, UserError, 'no copy passed'),
  ],
)
def test_what_cannot_be_made_is_named(tmp_path, change, error, said):
  with pytest.raises(error, match=said):
    make(tmp_path, **change).run(tmp_path)


def test_a_model_is_held_to_the_briefs_words():
  import jsonschema

  brief = parse_brief(BRIEF)
  limits = limits_of(brief.formats)
  plan = Plan(('no added sugar',), (('baked every morning',), ()))
  fits = jsonschema.Draft202012Validator(copy_schema(brief, limits, plan)).is_valid
  good = Copy('No added sugar', 'Oat bread, baked every morning. Make it yours.', 'See more')
  assert fits(good._asdict())
  assert find_problems(brief, good, limits) == []
  wide = Limits(200, 200, 30)
  voices = [wordings(voice) for voice in vocabulary()['voices']]
  for name, words in itertools.product(('headlines', 'sentences'), voices):
    for facts in ((), brief.facts[:1], brief.facts[1:]):
      for text in _filled(words[name], brief.product, facts):
        assert find_problems(brief, Copy(text, '', 'See more'), wide) == []
  for action in itertools.chain(*(words['actions'] for words in voices)):
    assert find_problems(brief, Copy('Oat bread', '', action), wide) == []
  for body in (
    'Oat bread cures you.',
    'Oat bread for 3 euros.',
    '750 g. Make it yours.',
    'Oat ' * 30,
  ):
    assert not fits(good._replace(body=body)._asdict()), body


@pytest.mark.parametrize('count', [0, 1, 4, 7])
def test_a_plan_says_every_fact_that_fits_once(count):
  facts = [f'with part {letter}' for letter in 'abcdefg'[:count]]
  brief, random = parse_brief({'product': 'Kit', 'facts': facts}), np.random.default_rng(count)
  for limits in (Limits(60, 140, 20), Limits(36, 70, 16)):
    for _ in range(20):
      plan = plan_copy(brief, limits, random)
      told = [fact for sentence in (plan.head, *plan.sentences) for fact in sentence]
      assert len(told) == len(set(told))
      assert set(told) <= set(facts)
      assert len(told) == count or limits.body == 70
    for copy in draw_copies(brief, limits, 20, random):
      assert all(one.kind == 'length' for one in find_problems(brief, copy, limits)), copy
