"""From `argv` to a task: the experiment is looked up first, then every leaf of it is an absl flag.

Knows nothing about what tasks do.
"""

import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from lmjax.core import config, registry
from lmjax.core.errors import UserError, closest
from lmjax.core.storage import mirror
from lmjax.core.task import Task

_USAGE = """usage: python -m lmjax.main --experiment=NAME [--FLAG=VALUE ...]

  --experiment=NAME     what to run; also package.module:function of your own
  --config=FILE         run a saved config.json again; flags given beside it win
  --workdir=FOLDER      where everything is written (default runs/NAME); also s3://, gs://
  --flagfile=FILE       read flags from a file, one a line
  --list                every experiment, one line each
  --help                this text; with --experiment also all its flags"""
_GENERAL = {'experiment': str, 'config': str, 'workdir': str, 'list': bool, 'help': bool, 'h': bool}


class Command(NamedTuple):
  """The run that a command line asks for; `workdir` is None where it names none."""

  experiment: str
  task: Task
  workdir: Path | None


def parse(argv: Sequence[str]) -> Command | str:
  """The run that `argv` (its first item the program) asks for, or the text it asks to be shown.

  Raises:
    UserError: something in it is wrong.
  """
  args = _expand_flag_files(argv)
  first = _parse_flags((), args, known_only=True)
  name, saved = _read_config(first.config, first.experiment)
  if not (name or first.list or first.help or first.h):
    raise UserError(
      'no experiment was named: pass --experiment=NAME, such as --experiment=posts_tiny '
      '(--list shows them all)'
    )
  task = _restore(name, saved, first.config) if name else None
  leaves = config.leaves(task) if task else []
  values = _parse_flags(leaves, args)
  if values.list:
    return listing(registry.entries())
  if task is None:
    return welcome(registry.entries())
  given = {leaf.name: values[leaf.name].value for leaf in leaves if values[leaf.name].present}
  try:
    task = config.override(task, given)
  except UserError as error:
    raise UserError(config.qualify(str(error), [leaf.name for leaf in leaves], '--')) from None
  if values.help or values.h:
    return help_text(name, task)
  return Command(name, task, mirror(values.workdir) if values.workdir else None)


def _expand_flag_files(argv: Sequence[str]) -> list[str]:
  """`argv` with each --flagfile replaced by what is in it, so that it is read once."""
  try:
    return [argv[0], *flags.FlagValues().read_flags_from_files(argv[1:])]
  except flags.CantOpenFlagFileError as error:
    reason = str(error).partition('] ')[2]
  except flags.Error:
    reason = 'no file is named'
  except UnicodeDecodeError:
    reason = 'not a text'
  raise UserError(f'--flagfile: {reason}: pass a text file with one flag a line')


def _parse_flags(
  leaves: Sequence[config.Leaf], argv: Sequence[str], known_only: bool = False
) -> flags.FlagValues:
  """The general flags and those of `leaves` as `argv` sets them; with `known_only` others may be in it."""
  values = flags.FlagValues()
  values.set_gnu_getopt(True)
  general = [
    config.Leaf(name, (), kind, None, {'doc': ''}, True) for name, kind in _GENERAL.items()
  ]
  for leaf in [*general, *leaves]:
    assert leaf.name not in values, f'a leaf cannot be called {leaf.name}: rename it'
    parser, doc = _LeafParser(leaf), leaf.metadata['doc']
    flag = flags.Flag(parser, None, leaf.name, None, doc, boolean=leaf.kind is bool)
    flags.DEFINE_flag(flag, values)
  try:
    rest = values(argv, known_only=known_only)[1:]
  except flags.UnrecognizedFlagError as error:
    close = ' or '.join(f'--{name}' for name in closest(error.flagname, values))
    hint = f'did you mean {close}?' if close else '--help lists those there are'
    raise UserError(f'unknown flag --{error.flagname}: {hint}') from None
  except (flags.Error, ValueError) as error:  # absl raises both
    said = str(error).removeprefix('flag ')
    missing = said.removeprefix('Missing value for flag ')
    said = said if said == missing else f'{missing} has no value: pass {missing}=VALUE'
    raise UserError(said) from None
  if rest and not known_only:
    raise UserError(f'unexpected argument {rest[0]!r}: flags look like --name=value')
  return values


class _LeafParser(flags.ArgumentParser):
  """Parses the text of one leaf's flag."""

  def __init__(self, leaf: config.Leaf) -> None:
    super().__init__()
    self.leaf = leaf

  def parse(self, argument: str) -> Any:
    return config.parse(self.leaf, argument)


def _read_config(path: str, name: str) -> tuple[str, Mapping[str, Any]]:
  """(experiment, leaf values) of a saved config.json; without one, `name` and nothing."""
  if not path:
    return name, {}
  try:
    saved = json.loads(Path(path).read_text(encoding='utf-8'))
    found, values = saved['experiment'], dict(saved['config'])
  except OSError as error:
    raise UserError(f'--config={path}: {error.strerror}: pass the config.json of a run') from None
  except (ValueError, KeyError, TypeError):
    raise UserError(
      f'--config={path} is not the config.json of a run: pass RUN/config.json'
    ) from None
  if name and name != found:
    raise UserError(
      f'--experiment={name} contradicts --config={path}, which is of {found}: drop one'
    )
  return found, values


def _restore(name: str, saved: Mapping[str, Any], path: str) -> Task:
  """The task of experiment `name` with the leaves that the config.json at `path` saved."""
  try:
    return config.from_json(registry.find(name), saved)
  except UserError as error:
    raise UserError(f'--config={path}: {error}' if path else str(error)) from None


def listing(entries: Mapping[str, registry.Entry]) -> str:
  """Every experiment and its one line."""
  width = max(map(len, entries), default=0)
  return '\n'.join(f'{name:{width}}  {entry.line}' for name, entry in sorted(entries.items()))


def welcome(entries: Mapping[str, registry.Entry]) -> str:
  """What to show someone who has named no experiment."""
  start = 'start with: python -m lmjax.main --experiment=posts_tiny'
  return f'{_USAGE}\n\nexperiments:\n{textwrap.indent(listing(entries), "  ")}\n\n{start}'


def help_text(experiment: str, task: Task) -> str:
  """The experiment, and each of its flags with its value, what is allowed and what it means."""
  what = (type(task).__doc__ or '').split('\n')[0]
  width = min(shutil.get_terminal_size().columns, 110)
  lines = [_USAGE, '', f'flags of {experiment} ({what})', '']
  for leaf in config.leaves(task):
    lines.append(f'  --{leaf.name}={config.to_text(leaf.value)}')
    allowed = config.describe(leaf.kind, leaf.metadata)
    about = f'{leaf.metadata["doc"]} ({allowed}{"; may change between starts" if leaf.run else ""})'
    lines += textwrap.wrap(about, width, initial_indent=' ' * 6, subsequent_indent=' ' * 6)
  return '\n'.join(lines)
