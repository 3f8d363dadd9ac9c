"""Every leaf of every registered experiment, as a flag: bad values are refused, good ones come back."""

import itertools
import json
import math
import re

import pytest

from lmjax.core import command_line, config, registry
from lmjax.core.errors import UserError
from lmjax.parallel.mesh import AXES
from lmjax.train.pretrain import Pretrain

NAMES = sorted(registry.entries())
TRAINING = [name for name in NAMES if isinstance(registry.find(name), Pretrain)]
PAIRS = list(itertools.combinations(AXES, 2))


def parse(name, *args):
  command = command_line.parse(['lmjax', f'--experiment={name}', *args])
  assert isinstance(command, command_line.Command)
  return command.task


def refused(name, *args):
  """The one sentence that refuses these flags."""
  with pytest.raises(UserError) as caught:
    parse(name, *args)
  sentence = str(caught.value)
  assert '\n' not in sentence
  return sentence


def bad_texts(leaf):
  """Texts of a type that `leaf` cannot have. A text can have none: what it says is checked by its part."""
  if config.describe(leaf.kind) in (
    'a text',
    'none or a text',
    'a comma-separated list, each a text',
  ):
    return []
  return ['no such thing', '1.5.2', *(['1.5', 'true'] if 'integer' in allowed(leaf) else [])]


def beyond(leaf):
  """Numbers just outside the range of `leaf`."""
  low, high, above = (leaf.metadata.get(key) for key in ('low', 'high', 'above'))
  whole = 'integer' in allowed(leaf)
  below = [] if low is None else [low - 1 if whole else math.nextafter(low, -math.inf)]
  over = [] if high is None else [high + 1 if whole else math.nextafter(high, math.inf)]
  return [*below, *over, *([] if above is None else [above])]


def allowed(leaf):
  return config.describe(leaf.kind, leaf.metadata)


@pytest.mark.parametrize('name', NAMES)
def test_a_value_of_a_wrong_type_is_refused_by_every_leaf(name):
  for leaf in config.leaves(registry.find(name)):
    for text in bad_texts(leaf):
      sentence = refused(name, f'--{leaf.name}={text}')
      assert sentence == f'--{leaf.name}={text}: expected {allowed(leaf)}'


@pytest.mark.parametrize('name', NAMES)
def test_a_number_out_of_its_range_is_refused_by_every_leaf(name):
  for leaf in config.leaves(registry.find(name)):
    for number in beyond(leaf):
      sentence = refused(name, f'--{leaf.name}={number}')
      assert sentence == f'--{leaf.name}={number}: expected {allowed(leaf)}'


@pytest.mark.parametrize('name', NAMES)
def test_a_saved_value_of_a_wrong_type_is_refused_by_every_leaf(name):
  task = registry.find(name)
  for leaf in config.leaves(task):
    for value in ({}, [{}], 1j):
      told = f'{leaf.name}={value!r}: expected {allowed(leaf)}'
      with pytest.raises(UserError, match=f'^{re.escape(told)}$'):
        config.from_json(task, {leaf.name: value})


@pytest.mark.parametrize('name', NAMES)
def test_every_leaf_given_the_value_it_has_changes_nothing(name):
  task = registry.find(name)
  on = [leaf for leaf in config.leaves(task) if leaf.name in config.to_json(task)]
  assert parse(name, *(f'--{leaf.name}={config.to_text(leaf.value)}' for leaf in on)) == task


@pytest.mark.parametrize('name', NAMES)
def test_every_experiment_comes_back_from_its_json(name, tmp_path):
  task = registry.find(name)
  path = tmp_path / 'config.json'
  path.write_text(json.dumps({'experiment': name, 'config': config.to_json(task)}))
  command = command_line.parse(['lmjax', f'--config={path}'])
  assert command == (name, task, None)


@pytest.mark.parametrize('name', NAMES)
def test_every_optional_part_comes_back_switched_the_other_way(name):
  task = registry.find(name)
  for leaf in config.leaves(task):
    if leaf.is_switch:
      other = config.override(task, {leaf.name: 'none' if leaf.value == 'on' else 'on'})
      saved = json.loads(json.dumps(config.to_json(other)))
      assert other != task
      assert config.from_json(task, saved) == other


@pytest.mark.parametrize('name', NAMES)
def test_every_leaf_says_in_one_line_what_it_is(name):
  for leaf in config.leaves(registry.find(name)):
    doc = leaf.metadata['doc']
    assert doc.endswith('.'), leaf.name
    assert len(doc) <= 110, leaf.name
    assert '\n' not in doc, leaf.name


@pytest.mark.parametrize('name', TRAINING)
@pytest.mark.parametrize('pair', PAIRS, ids=':'.join)
def test_every_pair_of_mesh_axes_of_a_bad_size_is_refused(name, pair):
  flags = [f'--mesh.{axis}=7' for axis in pair]
  sentence = refused(name, *flags)
  assert re.search(r'--(batch|length|model\.[\w.]+)=\d+ does not divide over ', sentence)
  assert re.search(r': the nearest (that do are|is) \d', sentence)
  assert any(
    f'{axis}=7' in sentence or (axis == 'pipe' and '7 stages' in sentence) for axis in pair
  )


@pytest.mark.parametrize('name', TRAINING)
@pytest.mark.parametrize('axis', AXES)
@pytest.mark.parametrize('size', ['0', '-1', 'x', '1.5'])
def test_a_mesh_axis_of_no_size_is_refused(name, axis, size):
  told = f'--mesh.{axis}={size}: expected an integer of 1 or more'
  assert refused(name, f'--mesh.{axis}={size}') == told
