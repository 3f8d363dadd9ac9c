"""The experiment registry: a name -> the function in `experiments/` that returns its task.

Names are read from the source of the package without importing it, so that listing a hundred
experiments costs milliseconds and choosing one imports that one's module alone.
"""

import ast
import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import lmjax
from lmjax.core.errors import UserError, nearest
from lmjax.core.outside import find_function, told
from lmjax.core.task import Task

T = TypeVar('T', bound=Task)


def experiment(function: Callable[[], T]) -> Callable[[], T]:
  """Registers `function`, which takes nothing and returns a task, under its own name."""
  if not (function.__doc__ or '').strip():
    raise TypeError(
      f'experiment {function.__name__} needs a docstring: its first line is shown by --list'
    )
  return function


class Entry(NamedTuple):
  """Where an experiment is and its one line of description."""

  module: str
  line: str


@functools.cache
def entries() -> dict[str, Entry]:
  """Every registered experiment by name."""
  found: dict[str, Entry] = {}
  for path in sorted(_folder().glob('*.py')):
    for node in ast.parse(path.read_text(encoding='utf-8'), str(path)).body:
      if isinstance(node, ast.FunctionDef) and _is_registered(node):
        if node.name in found:
          raise TypeError(
            f'experiment {node.name} is in {found[node.name].module} and in {path.stem}'
          )
        line = (ast.get_docstring(node) or '').split('\n')[0]
        found[node.name] = Entry(f'experiments.{path.stem}', line)
  return found


def find(name: str) -> Task:
  """The task of experiment `name`, or of `package.module:function`."""
  if ':' in name:
    return _find_outside(name)
  if name not in entries():
    known = nearest(name, entries())
    raise UserError(f'unknown experiment {name!r}: {known}')
  return getattr(importlib.import_module(entries()[name].module), name)()


def _find_outside(name: str) -> Task:
  """The task of the user's own `package.module:function`; what goes wrong in it is theirs to mend."""
  function = find_function('experiment', name)
  try:
    task = function()
  except UserError as error:
    raise UserError(f'--experiment={name}: {error}') from None
  except Exception as error:
    raise UserError(f'--experiment={name} raised {told(error)}') from error
  if not isinstance(task, Task):
    raise UserError(
      f'--experiment={name}: {function.__name__} returned {type(task).__name__}: return a '
      'lmjax.core.task.Task'
    )
  return task


def _folder() -> Path:
  """The `experiments` package that ships with lmjax, refused when a folder of the user's hides it."""
  ours = Path(lmjax.__file__).resolve().parent.parent / 'experiments'
  spec = importlib.util.find_spec('experiments')
  places = list(spec.submodule_search_locations or [spec.origin]) if spec else []
  if [Path(place or '').resolve() for place in places] != [ours]:
    raise UserError(
      f"Python's 'experiments' is {places[0] if places else 'nowhere'}, not {ours} of lmjax: "
      'run from another folder, or rename yours and pass --experiment=your_package.module:function'
    )
  return ours


def _is_registered(node: ast.FunctionDef) -> bool:
  return any(
    (isinstance(mark, ast.Name) and mark.id == 'experiment')
    or (isinstance(mark, ast.Attribute) and mark.attr == 'experiment')
    for mark in node.decorator_list
  )
