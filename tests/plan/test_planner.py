"""The plan as a user meets it: one command, a verdict, the keys that programs read, clear refusals."""

import json
import re

import pytest
from programs import DENSE, SMALL
from unassembled import unassembled

from lmjax.core import config
from lmjax.core.errors import UserError
from lmjax.plan.planner import Plan

FLAGS = ' '.join(f'--{name}={value}' for name, value in SMALL.items())
KEYS = {
  'fits': bool,
  'peak_gib': float,
  'hbm_gib': float,
  'tokens_per_second': float,
  'mfu': float,
  'wire_gib': dict,
  'exposed_gib': float,
  'days': float,
  'dollars': float,
  'goodput': float,
  'warnings': list,
  'compile_seconds': float,
  'mesh': dict,
  'candidates': list,
}


def plan(workdir, **settings):
  task = config.override(Plan(), {'target': DENSE, 'target_flags': FLAGS} | settings)
  with unassembled():
    return task.run(workdir)


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  folder = tmp_path_factory.mktemp('plan')
  return plan(folder, gpus=16, candidates=1), folder


def test_the_report_holds_what_programs_read(found):
  report, _ = found
  for key, kind in KEYS.items():
    assert isinstance(report[key], kind), key
  assert report['gpus'] == 16
  json.dumps(report, allow_nan=False)
  assert 0 < report['mfu'] < 1
  assert 0 < report['goodput'] <= 1


@pytest.mark.slow
def test_the_search_compiles_what_was_asked_and_more_and_picks_the_fastest(found):
  report, _ = found
  rows = report['candidates']
  assert len(rows) == 2
  keys = {'mesh', 'microbatch', 'remat', 'peak_gib', 'tokens_per_second', 'label', 'fits', 'best'}
  assert all(keys <= row.keys() for row in rows)
  (best,) = [row for row in rows if row['best']]
  assert best['tokens_per_second'] == max(row['tokens_per_second'] for row in rows)
  assert best['mesh'] == report['mesh']


@pytest.mark.slow
def test_every_figure_says_where_it_is_from(found):
  report, _ = found
  assert {figure['label'] for figure in report['figures']} == {'compiled', 'modelled', 'given'}


@pytest.mark.slow
def test_the_page_stands_alone(found):
  _, folder = found
  page = (folder / 'plan.html').read_text()
  assert '<svg' in page
  assert not re.search(r'(src|href)=|https?://(?!www.w3.org)', page)


@pytest.mark.slow
def test_without_a_search_only_what_is_asked_is_compiled(tmp_path):
  report = plan(tmp_path, gpus=8, search=False)
  assert len(report['candidates']) == 1
  assert len(list((tmp_path / 'programs').iterdir())) == 1


@pytest.mark.slow
@pytest.mark.long
def test_a_plan_that_does_not_fit_says_what_would(tmp_path):
  report = plan(
    tmp_path,
    target='posts_dense_8b',
    target_flags='--model.remat=none --batch=256 --mesh.fsdp=8',
    gpus=64,
    search=False,
  )
  assert not report['fits']
  assert report['peak_gib'] > report['hbm_gib']
  assert len(report['changes']) == 3
  assert all(change['fits'] and change['label'] == 'compiled' for change in report['changes'])


@pytest.mark.parametrize(
  ('settings', 'said'),
  [
    ({'target': 'posts_tinny'}, 'did you mean posts_tiny'),
    ({'target': 'doctor', 'target_flags': ''}, '--target=doctor is not a training run'),
    ({'target_flags': '--model.layerz=2', 'target': 'posts_tiny'}, 'did you mean --model.layers'),
    ({'target_flags': '--batch="8'}, '--target_flags: No closing quotation'),
    (
      {'target_flags': '--flagfile=flags.txt'},
      'pass settings of posts_dense_1b only|cannot|No such',
    ),
    (
      {'target_flags': f'{FLAGS} --mesh.data=4', 'gpus': 8},
      '--gpus=8 sets mesh.data of the target',
    ),
    ({'target_flags': '--help'}, 'pass settings of posts_dense_1b only'),
    ({'target_flags': '--workdir=elsewhere'}, 'pass settings of posts_dense_1b only'),
    ({'accelerator': 'h10'}, "unknown accelerator 'h10': did you mean h100"),
    (
      {'target_flags': f'{FLAGS} --mesh.fsdp=3', 'gpus': 8, 'search': False},
      'does not divide',
    ),
    (
      {'target_flags': f'{FLAGS} --mesh.fsdp=8', 'gpus': 12, 'search': False},
      'pass 8 or 16',
    ),
    ({'gpus': 17}, 'no mesh of 17 GPUs divides batch and model'),
  ],
)
def test_what_cannot_be_planned_is_refused_in_a_sentence(settings, said, tmp_path):
  with pytest.raises(UserError, match=said):
    plan(tmp_path, **settings)
