"""What is wrong with a step is named, with the tensor and what mends it; one in order has no findings."""

import functools
import re
from pathlib import Path

import pytest
from mistakes import CLEAN, MISTAKES, compiled, findings

import lmjax
from lmjax.plan.explain import explain

ROOT = Path(lmjax.__file__).parents[1]
QUICK = {'dense over fsdp and tensor', 'the hidden layer is whole'}
WARNING = (
  '[SPMD] Involuntary full rematerialization. The compiler cannot go from sharding '
  '{devices=[4,1,2]<=[8]} to {devices=[1,4,2]<=[8]} efficiently for HLO operation %dot.7 = '
  'f32[16,4096,8192]{2,1,0} dot(%a, %b), metadata={op_name="jit(train_step)/jvp()/while/body/Block/mlp/'
  'BLD,DF->BLF/dot_general"}. As the last resort, SPMD will replicate the tensor'
)


def each(names):
  return [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name.replace(' ', '-'))
    for name in names
  ]


@functools.cache
def clean(name):
  return compiled(CLEAN[name])


@pytest.mark.parametrize('name', each(CLEAN))
def test_a_step_that_is_in_order_has_no_findings(name):
  assert explain(clean(name)) == []


def test_what_the_compiler_says_of_a_layout_is_traced_to_its_tensor_and_line():
  found = clean('dense over fsdp and tensor')
  (finding,) = explain(found._replace(program=found.program._replace(warnings=[WARNING])))
  assert 'f32[16,4096,8192] is copied whole to every device' in finding.what
  assert finding.tensor == 'activations of layers/mlp'
  assert finding.where.startswith('lmjax/models/layers.py:')
  assert finding.cost.startswith('2.0 GiB')
  assert finding.fix.startswith('constrain(x, ')


@pytest.mark.parametrize('name', each(MISTAKES))
def test_a_mistake_is_named_with_what_mends_it(name):
  mistake = MISTAKES[name]
  found = findings(mistake)
  told = [
    one
    for one in found
    if re.search(mistake.tensor, one.tensor) and re.search(mistake.fix, one.fix)
  ]
  assert told, found
  lines = [one.where for one in found if one.where.startswith('lmjax/')]
  assert all((ROOT / line.split(':')[0].split(' ')[0]).is_file() for line in lines)
