"""The three big runs, compiled for the GPUs that they are for: what they hold, compute and send."""

import json
from pathlib import Path

import pytest

from lmjax.core import config
from lmjax.plan.planner import Plan, golden

PLANS = json.loads(Path(__file__).with_name('plans.json').read_text())


@pytest.mark.slow
@pytest.mark.parametrize('row', PLANS, ids=lambda row: row['settings']['target'])
def test_a_big_run_compiles_to_what_it_did(row, tmp_path):
  # Regenerate with `python tools/golden.py plans`, and say in the commit why it changed.
  report = config.override(Plan(), {'search': False, **row['settings']}).run(tmp_path)
  assert report['fits']
  assert report['warnings'] == []
  found = golden(report)
  assert found['mesh'] == row['found']['mesh']
  for name in ('peak_gib', 'pflop', 'wire_gib'):
    assert found[name] == pytest.approx(row['found'][name], rel=0.02), name
