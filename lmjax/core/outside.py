"""Functions of the user's own, named on the command line as `package.module:function`."""

import importlib
import traceback
from collections.abc import Callable
from typing import Any

from lmjax.core.errors import UserError, nearest


def find_function(flag: str, name: str) -> Callable[..., Any]:
  """The function that `--flag=name` names.

  Raises:
    UserError: it is not `package.module:function`, there is no such module or function, or importing it
      raised.
  """
  module, _, function = name.partition(':')
  if not all(word.isidentifier() for word in [*module.split('.'), function]):
    raise UserError(f'--{flag}={name}: expected package.module:function')
  try:
    functions = vars(importlib.import_module(module))
  except UserError as error:
    raise UserError(f'--{flag}={name}: {error}') from None
  except Exception as error:
    if isinstance(error, ModuleNotFoundError) and f'{module}.'.startswith(f'{error.name}.'):
      raise UserError(
        f'--{flag}={name}: there is no module {module!r} on the Python path: '
        'start from its folder, or set PYTHONPATH'
      ) from None
    raise UserError(f'--{flag}={name} raised {told(error)}') from error
  if not callable(functions.get(function)):
    known = [key for key, value in functions.items() if callable(value)]
    raise UserError(
      f'--{flag}={name}: module {module} has no function {function!r}: {nearest(function, known)}'
    )
  return functions[function]


def told(error: Exception) -> str:
  """An error in one line, with the place it came from."""
  said = ' '.join(f'{type(error).__name__}: {error}'.split())
  frames = traceback.extract_tb(error.__traceback__)
  frames = [frame for frame in frames if frame.filename not in (__file__, importlib.__file__)]
  place = frames[-1] if frames and not frames[-1].filename.startswith('<') else None
  return f'{said} ({place.filename}, line {place.lineno})' if place else said
