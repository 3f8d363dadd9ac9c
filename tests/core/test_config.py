import dataclasses
import json
from typing import Literal

import pytest
from tiny_tasks import Color, Inner, Middle, Source, Tiny

from lmjax.core import config
from lmjax.core.config import (
  Config,
  changed_identity,
  describe,
  from_json,
  leaf,
  leaves,
  override,
  part,
  qualify,
  to_json,
  to_text,
)
from lmjax.core.errors import UserError, closest, nearest


def leaf_named(name, task=None):
  return next(leaf for leaf in leaves(task or Tiny()) if leaf.name == name)


def saved(task):
  """What a reader of its config.json gets."""
  return json.loads(json.dumps(to_json(task)))


class TestLeaves:
  def test_are_named_by_path_and_inline_parts_by_their_owner(self):
    names = [leaf.name for leaf in leaves(Tiny())]
    assert 'middle.inner.size' in names
    assert 'files' in names
    assert 'source.files' not in names

  def test_an_optional_part_is_a_switch_and_its_leaves(self):
    assert leaf_named('present').value == 'on'
    assert leaf_named('absent').value == 'none'
    assert leaf_named('absent').is_switch
    assert leaf_named('absent.size').value == 4

  def test_below_a_run_part_are_run_leaves(self):
    assert leaf_named('manner.size').run
    assert leaf_named('pace').run
    assert not leaf_named('present.size').run

  def test_of_one_name_are_a_bug(self):
    class Twice(Config):
      files: str = leaf('', 'One.')
      source: Source = part(Source(), 'Two.', inline=True)

    with pytest.raises(AssertionError, match=r"declares \{'files'\} twice: rename"):
      leaves(Twice())


class TestConstruction:
  def test_takes_an_int_for_a_float_a_list_for_a_tuple_and_a_name_for_a_member(self):
    task = Tiny(rate=1, sizes=[3], color='BLUE')  # type: ignore[arg-type]
    assert (task.rate, task.sizes, task.color) == (1.0, (3,), Color.BLUE)
    assert isinstance(task.rate, float)
    hash(task)

  @pytest.mark.parametrize(
    ('field', 'value', 'allowed'),
    [
      ('width', 0, 'expected an integer of 1 or more'),
      ('width', 2.0, 'expected an integer of 1 or more'),
      ('width', True, 'expected an integer of 1 or more'),
      ('width', '3', 'expected an integer of 1 or more'),
      ('width', None, 'expected an integer of 1 or more'),
      ('rate', 0, 'expected a number above 0 and at most 1'),
      ('rate', 1.5, 'expected a number above 0 and at most 1'),
      ('rate', float('nan'), 'expected a number above 0 and at most 1'),
      ('rate', 10**400, 'expected a number above 0 and at most 1'),
      ('rate', False, 'expected a number above 0 and at most 1'),
      ('flag', 1, 'expected true or false'),
      ('text', 5, 'expected a text'),
      ('kind', 'quick', 'expected one of: slow, fast'),
      ('kind', ['slow'], 'expected one of: slow, fast'),
      ('level', True, 'expected one of: 1, 2'),
      ('level', 1.0, 'expected one of: 1, 2'),
      ('color', 'GREEN', 'expected one of: RED, BLUE'),
      ('color', 1, 'expected one of: RED, BLUE'),
      ('spare', 'GREEN', 'expected none or one of: RED, BLUE'),
      ('limit', -1, 'expected none or an integer of 0 or more'),
      ('sizes', (1, -1), 'expected a comma-separated list, each an integer of 0 or more'),
      ('sizes', 1, 'expected a comma-separated list, each an integer of 0 or more'),
      ('pair', (1,), 'expected 2 comma-separated values: an integer; a number'),
      ('pair', (0.5, 0.5), 'expected 2 comma-separated values: an integer; a number'),
      ('colors', ['RED', 'GREEN'], 'expected a comma-separated list, each one of: RED, BLUE'),
    ],
  )
  def test_refuses_a_value_and_says_what_is_allowed(self, field, value, allowed):
    with pytest.raises(UserError, match=f'^{field}=.*: {allowed}$'):
      Tiny(**{field: value})
    with pytest.raises(UserError, match=f'^{field}=.*: {allowed}$'):
      override(Tiny(), {field: value})

  def test_takes_an_integer_that_is_too_large_for_a_float(self):
    assert Tiny(width=10**400).width == 10**400

  def test_refuses_a_part_of_another_class(self):
    with pytest.raises(UserError, match=r'present=Source.*: expected none or Inner'):
      Tiny(present=Source())  # type: ignore[arg-type]
    with pytest.raises(UserError, match='middle=None: expected Middle'):
      Tiny(middle=None)  # type: ignore[arg-type]

  def test_is_frozen_and_by_keyword_only(self):
    with pytest.raises(dataclasses.FrozenInstanceError):
      Tiny().width = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
      Inner(3)  # type: ignore[misc]


class TestParse:
  @pytest.mark.parametrize(
    ('name', 'text', 'value'),
    [
      ('width', '12', 12),
      ('rate', '1e-3', 1e-3),
      ('rate', '1', 1.0),
      ('flag', 'False', False),
      ('flag', '1', True),
      ('text', 'none', 'none'),
      ('text', '', ''),
      ('note', 'none', None),
      ('kind', 'fast', 'fast'),
      ('level', '2', 2),
      ('color', 'BLUE', Color.BLUE),
      ('spare', 'none', None),
      ('spare', 'BLUE', Color.BLUE),
      ('limit', 'None', None),
      ('sizes', '8,8, 0', (8, 8, 0)),
      ('sizes', '5', (5,)),
      ('sizes', '', ()),
      ('pair', '3,0.25', (3, 0.25)),
      ('colors', 'RED,BLUE', (Color.RED, Color.BLUE)),
      ('words', '*/[ab],c', ('*/[ab]', 'c')),
      ('absent', 'on', 'on'),
    ],
  )
  def test_reads_every_type(self, name, text, value):
    assert config.parse(leaf_named(name), text) == value

  @pytest.mark.parametrize(
    ('name', 'text', 'allowed'),
    [
      ('width', 'x', 'an integer of 1 or more'),
      ('width', '1.5', 'an integer of 1 or more'),
      ('width', '0', 'an integer of 1 or more'),
      ('rate', 'inf', 'a number above 0 and at most 1'),
      ('flag', 'maybe', 'true or false'),
      ('kind', '', 'one of: slow, fast'),
      ('color', '1', 'one of: RED, BLUE'),
      ('limit', 'x', 'none or an integer of 0 or more'),
      ('sizes', '8,,0', 'a comma-separated list, each an integer of 0 or more'),
      ('pair', '1', '2 comma-separated values: an integer; a number'),
      ('absent', 'off', 'one of: none, on'),
    ],
  )
  def test_refuses_a_text_and_says_what_is_allowed(self, name, text, allowed):
    with pytest.raises(UserError, match=f'^expected {allowed}$'):
      config.parse(leaf_named(name), text)

  def test_reads_what_to_text_writes(self):
    task = Tiny(
      flag=False, color=Color.BLUE, limit=3, sizes=(), colors=(Color.RED,), pair=(2, 1e-9)
    )
    for each in leaves(task):
      assert config.parse(each, to_text(each.value)) == each.value, each.name

  def test_says_when_a_leaf_has_a_type_that_no_leaf_can_have(self):
    class Odd(Config):
      impedance: complex = leaf(1j, 'No leaf.')

    with pytest.raises(AssertionError, match=r'a leaf cannot be a .*complex'):
      config.parse(leaves(Odd())[0], '2j')


class TestDescribe:
  @pytest.mark.parametrize(
    ('kind', 'limits', 'words'),
    [
      (int, {}, 'an integer'),
      (int, {'low': 1}, 'an integer of 1 or more'),
      (int, {'high': 9}, 'an integer of 9 or less'),
      (int, {'low': 1, 'high': 9}, 'an integer from 1 to 9'),
      (float, {'above': 0}, 'a number above 0'),
      (float, {'above': 0, 'high': 1}, 'a number above 0 and at most 1'),
      (float | None, {'above': 0}, 'none or a number above 0'),
      (Literal['a', 'b'] | None, {}, 'none or one of: a, b'),
      (Inner, {}, 'Inner'),
      (Inner | Source, {}, 'Inner or Source'),
    ],
  )
  def test_says_what_is_allowed(self, kind, limits, words):
    assert describe(kind, limits) == words


class TestOverride:
  def test_replaces_leaves_at_any_depth(self):
    task = override(Tiny(), {'width': 3, 'middle.inner.size': 6, 'files': 'mine'})
    inner = dataclasses.replace(Inner(), size=6)
    assert task == Tiny(width=3, middle=Middle(inner=inner), source=Source(files='mine'))

  def test_of_nothing_is_the_same(self):
    task = Tiny()
    assert override(task, {}) is task

  def test_changes_leaves_that_depend_on_each_other_at_once(self):
    assert override(Inner(size=4, step=4), {'size': 5, 'step': 5}) == Inner(size=5, step=5)

  def test_switches_an_optional_part_off_and_on(self):
    assert override(Tiny(), {'present': 'none'}).present is None
    assert override(Tiny(), {'absent': 'on'}).absent == Inner()
    assert override(Tiny(present=Inner(size=6)), {'present': 'on'}).present == Inner(size=6)

  def test_turns_a_part_on_whose_leaf_is_set(self):
    assert override(Tiny(), {'absent.size': 6}).absent == Inner(size=6)
    assert override(Tiny(), {'absent': 'on', 'absent.size': 6}).absent == Inner(size=6)
    assert override(Tiny(), {'middle.rare.size': 6}).middle.rare == Inner(size=6)

  def test_refuses_a_leaf_of_a_part_that_is_switched_off_beside_it(self):
    changes = {'present.size': 6, 'present': 'none', 'present.step': 3}
    match = r'^present=none contradicts present.size=6 and present.step=3: drop one of them$'
    with pytest.raises(UserError, match=match):
      override(Tiny(), changes)

  def test_takes_a_value_called_none_for_no_switch(self):
    class Quiet(Config):
      voice: Literal['none', 'loud'] = leaf('loud', 'How.')

    assert override(Quiet(), {'voice': 'none'}) == Quiet(voice='none')

  def test_refuses_an_unknown_name_with_the_nearest(self):
    with pytest.raises(UserError, match=r"unknown setting 'widht': did you mean width\?"):
      override(Tiny(), {'widht': 3})

  @pytest.mark.parametrize('name', ['present', 'absent', 'middle.inner', 'middle.rare'])
  def test_names_the_leaves_of_a_part_in_full_where_they_contradict(self, name):
    match = rf'^{name}.size=5 is not a multiple of {name}.step=2: pass {name}.step=1$'
    with pytest.raises(UserError, match=match):
      override(Tiny(), {f'{name}.size': 5})


class TestQualify:
  def test_completes_names_that_are_given_a_value(self):
    sentence = 'heads=4 (step=3) is no multiple of heads: pass model.heads=3 or --heads=6'
    done = 'm.heads=4 (m.step=3) is no multiple of heads: pass model.heads=3 or --heads=6'
    assert qualify(sentence, ['heads', 'step'], 'm.') == done

  def test_leaves_values_and_longer_names_alone(self):
    sentence = "files='heads=1,a/heads=2' kv_heads=3"
    assert qualify(sentence, ['heads'], 'm.') == sentence


class TestJson:
  CASES = (
    Tiny(),
    Tiny(present=None, absent=Inner(size=6), middle=Middle(rare=Inner())),
    Tiny(color=Color.BLUE, spare=Color.RED, colors=(Color.RED, Color.BLUE)),
    Tiny(sizes=(), pair=(3, 2.0), words=('a,b', ''), limit=0, note='x', rate=1e-17, flag=False),
  )

  @pytest.mark.parametrize('base', CASES)
  @pytest.mark.parametrize('task', CASES)
  def test_restores_a_task_whatever_it_is_applied_to(self, task, base):
    assert from_json(base, saved(task)) == task

  def test_holds_the_switch_of_a_part_that_is_off_and_none_of_its_leaves(self):
    found = saved(Tiny(present=None))
    assert found['present'] == 'none'
    assert 'present.size' not in found

  def test_keeps_defaults_of_leaves_that_were_not_saved(self):
    assert from_json(Tiny(rate=0.5), {'width': 3}) == Tiny(width=3, rate=0.5)

  @pytest.mark.parametrize(
    ('name', 'value', 'allowed'),
    [
      ('width', 'x', 'an integer of 1 or more'),
      ('color', 'GREEN', 'one of: RED, BLUE'),
      ('absent', 'off', 'one of: none, on'),
      ('sizes', 'x', 'a comma-separated list'),
      ('middle.inner.size', 9, 'an integer from 1 to 8'),
    ],
  )
  def test_refuses_a_value_by_its_full_name(self, name, value, allowed):
    with pytest.raises(UserError, match=rf'^{name}={value!r}: expected {allowed}'):
      from_json(Tiny(), {name: value})


class TestChangedIdentity:
  def test_lists_identity_leaves_that_differ(self):
    assert changed_identity(saved(Tiny()), Tiny()) == []
    now = Tiny(width=3, sizes=(5,), color=Color.BLUE)
    changed = [('width', 8, 3), ('color', 'RED', 'BLUE'), ('sizes', [1, 2], [5])]
    assert changed_identity(saved(Tiny()), now) == changed

  def test_leaves_run_leaves_out(self):
    assert changed_identity(saved(Tiny()), Tiny(pace=9, manner=Inner(size=6))) == []

  def test_of_a_part_that_was_switched_lists_the_switch(self):
    before = saved(Tiny())
    assert changed_identity(before, Tiny(present=None)) == [('present', 'on', 'none')]
    assert changed_identity(before, Tiny(absent=Inner())) == [('absent', 'none', 'on')]

  def test_lists_leaves_that_one_of_the_two_lacks(self):
    before = saved(Tiny())
    del before['width']
    assert changed_identity(before | {'gone': 1}, Tiny()) == [('gone', 1, None), ('width', None, 8)]


class TestNearest:
  KNOWN = ('steps', 'model.width', 'optimizer.peak_lr', 'optimizer.ns_steps')

  @pytest.mark.parametrize(
    ('name', 'close'),
    [
      ('stepz', ['steps']),
      ('width', ['model.width']),
      ('lr', ['optimizer.peak_lr']),
      ('optimizer.peak_lrr', ['optimizer.peak_lr']),
      ('zebra', []),
    ],
  )
  def test_finds_what_a_name_may_stand_for(self, name, close):
    assert closest(name, self.KNOWN) == close

  def test_lists_all_where_none_is_close(self):
    assert nearest('stepz', self.KNOWN) == 'did you mean steps?'
    assert nearest('zebra', ['b', 'a']) == 'known are: a, b'
    assert nearest('zebra', []) == 'known are: none'
