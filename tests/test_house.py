"""The sizes that keep lmjax readable: of files, of functions, and of the way to the loss."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
  path.relative_to(ROOT)
  for top in ('lmjax', 'experiments', 'tools')
  for path in (ROOT / top).rglob('*.py')
)
FILE_LINES, FUNCTION_LINES, MAIN_LINES, TOOL_LINES, PATH_LINES = 500, 60, 80, 79, 250

# What someone reads from `python -m lmjax.main --experiment=posts_tiny` to the loss, in that order;
# the model, the data and the checkpoints not counted.
PATH_TO_LOSS = (
  ('lmjax/main.py', 'main'),
  ('lmjax/core/command_line.py', 'parse'),
  ('lmjax/core/registry.py', 'find'),
  ('lmjax/main.py', 'run'),
  ('lmjax/train/training.py', 'Training.run'),
  ('lmjax/train/pretrain.py', 'Pretrain.open'),
  ('lmjax/train/pretrain.py', 'Pretraining.__init__'),
  ('lmjax/train/job.py', 'Job.__init__'),
  ('lmjax/train/job.py', 'Job.start'),
  ('lmjax/train/job.py', 'Job.compile_step'),
  ('lmjax/train/job.py', 'Job.loop'),
  ('lmjax/train/loop.py', 'Loop.run'),
  ('lmjax/train/step.py', 'make_step'),
  ('lmjax/train/step.py', 'make_gradients'),
  ('lmjax/objectives/language.py', 'Language.__call__'),
  ('lmjax/ops/loss.py', 'cross_entropy'),
  ('lmjax/ops/loss.py', '_chunk_loss'),
)


def read(path: Path | str) -> str:
  return (ROOT / path).read_text(encoding='utf-8')


def functions(source: str) -> dict[str, int]:
  """Lines of each function by its name (`Class.method`), signature and docstring included."""
  found = {}

  def visit(node: ast.AST, prefix: str) -> None:
    for child in ast.iter_child_nodes(node):
      name = f'{prefix}{getattr(child, "name", "")}'
      if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
        assert child.end_lineno is not None
        found[name] = child.end_lineno - child.lineno + 1
      inner = f'{name}.' if isinstance(child, ast.ClassDef | ast.FunctionDef) else prefix
      visit(child, inner)

  visit(ast.parse(source), '')
  return found


@pytest.mark.parametrize('path', FILES, ids=str)
def test_no_file_and_no_function_is_too_long(path):
  source = read(path)
  limit = TOOL_LINES if path.parts[0] == 'tools' else FILE_LINES
  assert source.count('\n') <= limit
  assert {n: lines for n, lines in functions(source).items() if lines > FUNCTION_LINES} == {}


def test_main_is_short():
  assert read('lmjax/main.py').count('\n') <= MAIN_LINES


@pytest.mark.parametrize('path', FILES, ids=str)
def test_what_is_left_to_do_names_its_issue(path):
  marks = [line for line in read(path).split('\n') if re.search(r'\b(TODO|FIXME|XXX)\b', line)]
  assert [line for line in marks if not re.search(r'#\d+|issue \d+', line)] == []


def test_the_way_from_the_entry_to_the_loss_is_short():
  lines = {(path, name): functions(read(path))[name] for path, name in PATH_TO_LOSS}
  assert sum(lines.values()) <= PATH_LINES, lines
