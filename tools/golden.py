"""Writes what the tests compare with; run it where a change is meant, and say why in the commit.

python tools/golden.py [equality|plans|families]; equality and plans take 15 minutes on 2 cores.
docs/equality.md               each way of splitting the work beside one device
lmjax/train/equality.json      the ways that training takes without a warning
tests/parallel/collectives.json  what crosses devices in each program
tests/plan/plans.json            what big runs hold and send on GPUs that are not here
tests/interop/families.json      logits of tiny models by transformers (extra [torch])
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'

from lmjax.core import config
from lmjax.plan import planner
from lmjax.train import equality

ROOT = Path(__file__).parents[1]
ABOUT = """# Equality of meshes

A mesh moves arrays and never numbers. Each line is a small model trained over a mesh of virtual CPU
devices: the loss, as a share of that of one device without a mesh, and the largest difference of a
gradient, as a share of the largest number of its tensor (allowed: {tolerance:.0e}). All in f32.
Written by `python tools/golden.py`; `pytest -m slow tests/parallel/test_grid.py` computes it again.
Training over a mesh that is not among these says so. {count} combinations.

"""


def write_equality() -> None:
  found, programs = [], {}
  cases = sorted(equality.grid(), key=lambda case: str(case._replace(packed=True)))
  for number, case in enumerate(cases, 1):
    one = equality.compare(case)
    print(f'{number}/{len(cases)} {case}: {one.gradient_error:.1e}', flush=True)
    assert one.gradient_error <= equality.TOLERANCE, case
    found.append((case, one))
    programs[str(case._replace(packed=True))] = [list(row.values()) for row in one.collectives]
  about = ABOUT.format(tolerance=equality.TOLERANCE, count=len(found)) + equality.table(found)
  (ROOT / 'docs' / 'equality.md').write_text(about)
  (ROOT / 'lmjax' / 'train' / 'equality.json').write_text(equality.certificate(cases))
  lines = ',\n'.join(f'{json.dumps(k)}: {json.dumps(v)}' for k, v in sorted(programs.items()))
  (ROOT / 'tests' / 'parallel' / 'collectives.json').write_text(f'{{\n{lines}\n}}\n')


def write_plans() -> None:
  path = ROOT / 'tests' / 'plan' / 'plans.json'
  rows = json.loads(path.read_text())
  for row in rows:
    plan = config.override(planner.Plan(), {'search': False, **row['settings']})
    with tempfile.TemporaryDirectory() as folder:
      row['found'] = planner.golden(plan.run(Path(folder)))
  path.write_text('[\n' + ',\n'.join(map(json.dumps, rows)) + '\n]\n')


def write_families() -> None:
  sys.path.insert(0, str(ROOT / 'tests' / 'interop'))
  importlib.import_module('tiny').write_goldens(importlib.import_module('by_transformers').logits)


def main() -> None:
  writers = {'equality': write_equality, 'plans': write_plans, 'families': write_families}
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('what', nargs='?', choices=writers)
  what = parser.parse_args().what
  for name in [what] if what else ['equality', 'plans']:
    writers[name]()


if __name__ == '__main__':
  main()
