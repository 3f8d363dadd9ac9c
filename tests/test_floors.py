"""The floors of lmjax: a file imports from its own folder and from lower floors only.

Imports inside functions and under TYPE_CHECKING count. Folders on one floor never import each other.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
  ('core',),
  ('ops', 'parallel', 'supervise'),
  ('models', 'data', 'optim', 'checkpoint', 'adapt'),
  ('objectives', 'generate', 'interop'),
  ('train',),
  ('prep', 'search', 'ads', 'plan'),
  ('serve', 'bench'),
)
FLOOR = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders}
FILES = sorted(
  path.relative_to(ROOT) for top in ('lmjax', 'experiments') for path in (ROOT / top).rglob('*.py')
)


def imports(source: str, path: Path) -> list[str]:
  """Every module that `source` imports, by its full name; `from a import b` gives `a.b`."""
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      package = path.with_suffix('').parts[: -node.level] if node.level else ()
      base = '.'.join([*package, *([node.module] if node.module else [])])
      found += [f'{base}.{alias.name}' for alias in node.names]
  return found


def is_allowed(path: Path, module: str) -> bool:
  """Whether the file at `path` may import `module`."""
  top, folder, *_ = [*module.split('.'), '', '']
  own = path.parts[1] if len(path.parts) > 2 else ''
  if path.parts[0] == 'experiments':
    return top == 'experiments' or folder in FLOOR or top != 'lmjax'
  if own == 'supervise' and top in ('jax', 'jaxlib'):
    return False
  if top != 'lmjax':
    return top != 'experiments'
  if path.name == 'main.py' and not own:
    return folder == 'core'
  if folder in ('', '__version__'):
    return True
  if not own or folder not in FLOOR:
    return False  # lmjax/__init__.py imports nothing of ours, and nothing imports main
  if own == 'ops' and module.startswith('lmjax.parallel.sharding'):
    return True
  return folder == own or FLOOR[folder] < FLOOR[own]


@pytest.mark.parametrize('path', FILES, ids=str)
def test_a_file_imports_from_its_own_folder_and_lower_floors(path):
  found = imports((ROOT / path).read_text(encoding='utf-8'), path)
  assert [module for module in found if not is_allowed(path, module)] == []


def test_every_folder_of_lmjax_has_a_floor():
  folders = {path.parts[1] for path in FILES if path.parts[0] == 'lmjax' and len(path.parts) > 2}
  assert folders <= set(FLOOR)


def test_supervise_loads_no_jax_by_way_of_others():
  files = [path for path in FILES if path.parts[:2] == ('lmjax', 'supervise')]
  modules = ', '.join(['sys', *('.'.join(path.with_suffix('').parts) for path in files)])
  source = f'import {modules}; sys.exit("jax" in sys.modules)'
  subprocess.run([sys.executable, '-c', source], cwd=ROOT, check=True)


@pytest.mark.parametrize(
  ('path', 'source', 'allowed'),
  [
    ('lmjax/models/a.py', 'from lmjax.models.b import C', True),
    ('lmjax/models/a.py', 'from lmjax.parallel.sharding import constrain', True),
    ('lmjax/models/a.py', 'from lmjax.core import tree', True),
    ('lmjax/models/a.py', 'import lmjax', True),
    ('lmjax/models/a.py', 'from lmjax import __version__', True),
    ('lmjax/models/a.py', 'import jax', True),
    ('lmjax/models/a.py', 'from lmjax.train import loop', False),
    ('lmjax/models/a.py', 'import lmjax.train.loop as loop', False),
    ('lmjax/models/a.py', 'from lmjax import train', False),
    ('lmjax/models/a.py', 'from .. import train', False),
    ('lmjax/models/a.py', 'from ..train.loop import Loop', False),
    ('lmjax/models/a.py', 'from .b import C', True),
    ('lmjax/models/a.py', 'from lmjax.data.loader import Loader', False),
    ('lmjax/models/a.py', 'def f():\n  from lmjax.train import loop', False),
    ('lmjax/models/a.py', 'if TYPE_CHECKING:\n  from lmjax.train import loop', False),
    ('lmjax/models/a.py', 'from experiments import posts', False),
    ('lmjax/core/a.py', 'import experiments.posts', False),
    ('lmjax/ops/a.py', 'from lmjax.parallel.sharding import constrain', True),
    ('lmjax/ops/a.py', 'from lmjax.parallel import sharding', True),
    ('lmjax/ops/a.py', 'from lmjax.parallel.mesh import Mesh', False),
    ('lmjax/parallel/a.py', 'from lmjax.ops.dot import dot', False),
    ('lmjax/supervise/a.py', 'def f():\n  import jax.numpy', False),
    ('lmjax/supervise/a.py', 'from lmjax.core import clock', True),
    ('lmjax/train/a.py', 'from lmjax.serve import app', False),
    ('lmjax/train/a.py', 'from lmjax import main', False),
    ('lmjax/serve/a.py', 'from lmjax.train import loop', True),
    ('lmjax/main.py', 'from lmjax.core import registry', True),
    ('lmjax/main.py', 'from lmjax.train import pretrain', False),
    ('lmjax/__init__.py', 'from lmjax.core import registry', False),
    ('experiments/a.py', 'from lmjax.serve import app', True),
    ('experiments/a.py', 'from experiments.b import c', True),
    ('experiments/a.py', 'from lmjax import main', False),
  ],
)
def test_the_rule_tells_right_from_wrong(path, source, allowed):
  found = imports(source, Path(path))
  assert found
  assert all(is_allowed(Path(path), module) for module in found) == allowed
