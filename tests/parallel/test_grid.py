"""Every way of splitting the work gives the loss and the gradients of one device.

The slow list has them all, in the order that compiles each program once; the fast one has 30.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from small_models import QUICK

from lmjax.core.errors import UserError
from lmjax.ops import moe
from lmjax.parallel.mesh import Mesh
from lmjax.train import equality
from lmjax.train.equality import TOLERANCE, Case, ParallelSmoke, compare, grid, how_certified

COLLECTIVES = json.loads(Path(__file__).with_name('collectives.json').read_text())
GRID = sorted(grid(), key=lambda case: str(case._replace(packed=True)))
# Fifteen programs, each with whole rows and with packed ones: those that compile quickly, where others
# show no more. test_pipeline has experts on stages.
CHOSEN = (
  *(f'{axis}=4 moe scan x1' for axis in ('data', 'fsdp', 'expert', 'tensor')),
  'context=4 dense scan x1',
  'pipe=2 dense scan x2',
  'data=4 dense scan x2',
  'fsdp=4 dense list x2',
  'tensor=4 dense list x1',
  'data=2,fsdp=2 dense list x1',
  'data=2,tensor=2 dense scan x1',
  'fsdp=2,tensor=2 dense scan x2',
  'fsdp=2,tensor=2 moe list x1',
  'expert=2,context=2 moe scan x1',
  'fsdp=2,expert=2 moe scan x2',
)
FAST = [
  case for case in GRID if str(case).replace('unpacked ', '').replace('packed ', '') in CHOSEN
]


def check(case: Case) -> None:
  found = compare(case)
  assert found.gradient_error <= TOLERANCE
  assert found.loss == pytest.approx(found.loss_reference, rel=TOLERANCE)
  golden = COLLECTIVES[str(case._replace(packed=True))]
  assert [list(row.values()) for row in found.collectives] == golden


@pytest.mark.parametrize('case', FAST, ids=str)
def test_a_chosen_way_gives_what_one_device_gives(case):
  check(case)


@pytest.mark.slow
@pytest.mark.parametrize('case', GRID, ids=str)
def test_every_way_gives_what_one_device_gives(case):
  check(case)


def test_thirty_are_fast_and_the_grid_has_every_axis_with_every_other():
  assert len(FAST) == 30
  assert len(GRID) >= 200
  for count, combinations in ((1, 6), (2, 15), (3, 20)):
    assert len({case.axes for case in GRID if len(case.axes) == count}) == combinations
  ways = {case[1:] for case in GRID if case.axes == {'data', 'tensor'}}
  assert len(ways) == 2**4  # dense or not, packed or not, scan or list, one microbatch or two


def test_the_committed_table_is_of_this_grid():
  root = Path(equality.__file__).parents[2]
  lines = (root / 'docs' / 'equality.md').read_text().count('\n| ')
  assert lines == len(GRID) + 2
  assert (root / 'lmjax' / 'train' / 'equality.json').read_text() == equality.certificate(GRID)


@pytest.mark.parametrize(
  ('axes', 'way', 'known'),
  [
    ({}, ('dense', True, 'scan', 1), 'itself'),
    ({'data': 16}, ('dense', True, 'list', 8), 'itself'),
    ({'data': 16, 'fsdp': 8}, ('dense', True, 'list', 8), 'itself'),
    ({'data': 16, 'fsdp': 8, 'tensor': 4}, ('moe', True, 'scan', 1), 'itself'),
    ({'data': 16, 'fsdp': 8, 'tensor': 4}, ('moe', True, 'scan', 2), 'in parts'),
    ({'data': 10, 'fsdp': 16, 'expert': 8, 'tensor': 8}, ('moe', True, 'scan', 1), 'in parts'),
    ({'pipe': 2}, ('dense', True, 'list', 1), 'not'),
    ({'pipe': 2, 'fsdp': 2}, ('dense', True, 'list', 1), 'not'),
  ],
)
def test_a_way_is_certified_whatever_the_sizes_of_its_axes(axes, way, known):
  assert how_certified(Case(Mesh(**axes), *way)) == known


@pytest.mark.parametrize('packed', [False, True])
def test_experts_are_chosen_by_a_clear_margin(monkeypatch, packed):
  """Else rounding on a mesh could choose others, and the gradients would be of another function."""
  margins = []

  def record(scores_BLE):
    sorted_BLE = np.sort(scores_BLE)
    margins.append(np.min(sorted_BLE[..., -2] - sorted_BLE[..., -3]))

  def watched(scores_BLE, k):
    jax.debug.callback(record, scores_BLE)
    return choose(scores_BLE, k)

  choose = moe.choose
  monkeypatch.setattr(moe, 'choose', watched)
  model, batch = equality.small_model('moe'), equality.make_batch(packed)
  params = equality.random_params(model, equality.SEED)
  apply = lambda params: (
    model.apply(params, batch.tokens_BL, batch.segments_BL, batch.positions_BL).hidden_BLD
  )
  jax.block_until_ready(jax.jit(apply, compiler_options=QUICK)(params))
  jax.effects_barrier()
  assert len(margins) == model.layers
  assert min(margins) > 1e-4


def test_parallel_smoke_reports_each_mesh(tmp_path, capsys):
  meshes = ('data=4', 'context=4')
  report = ParallelSmoke(meshes=meshes, kind='moe').run(tmp_path)
  assert report['equal']
  assert [row['mesh'] for row in report['meshes']] == [{'data': 4}, {'context': 4}]
  for row in report['meshes']:
    assert row['loss'] == pytest.approx(row['loss_reference'], rel=1e-5)
    assert 0 < row['max_gradient_error'] <= TOLERANCE
    assert row['collectives']
  assert 'equal to one device' in capsys.readouterr().out


@pytest.mark.parametrize('mesh', ['fsdp', 'fsdp=0', 'fdsp=2', 'fsdp=2;tensor=2'])
def test_a_mesh_that_is_none_is_refused(tmp_path, mesh):
  with pytest.raises(UserError, match='expected AXIS=SIZE:AXIS=SIZE with axes of data'):
    ParallelSmoke(meshes=(mesh,)).run(tmp_path)


def test_an_axis_that_is_given_twice_is_refused(tmp_path):
  with pytest.raises(UserError, match='data=4:data=2 has an axis twice'):
    ParallelSmoke(meshes=('data=4:data=2',)).run(tmp_path)


def test_a_mesh_that_does_not_divide_is_refused_before_another_is_compiled(tmp_path, capsys):
  with pytest.raises(UserError, match='layers=2 does not divide over 3 stages'):
    ParallelSmoke(meshes=('data=2', 'pipe=3')).run(tmp_path)
  assert not capsys.readouterr().out


def test_a_gradient_that_is_no_number_is_an_error_wherever_it_stands():
  ones = [np.ones(2), np.ones(2)]
  for place in range(2):
    found = [np.full(2, np.nan) if i == place else one for i, one in enumerate(ones)]
    assert not equality._error(found, ones) <= TOLERANCE  # type: ignore[arg-type]
