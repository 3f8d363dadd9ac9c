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
from lmjax.core.errors import UserError
from lmjax.core.task import Task, default_workdir

_USAGE = """usage: python -m lmjax.main --experiment=NAME [--FLAG=VALUE ...]

  --experiment=NAME     what to run; also package.module:function of your own
  --config=FILE         run a saved config.json again; flags given beside it win
  --workdir=FOLDER      where everything is written (default runs/NAME)
  --flagfile=FILE       read flags from a file, one a line
  --list                every experiment, one line each
  --help                this text; with --experiment also all its flags"""


class Command(NamedTuple):
  """What the command line asks for."""

  experiment: str
  task: Task | None
  workdir: Path | None
  list: bool
  help: bool

  def chosen(self) -> tuple[Task, Path]:
    """The task and the workdir it gets."""
    assert self.task is not None
    return self.task, self.workdir or default_workdir(self.task, self.experiment)


def parse(argv: Sequence[str]) -> Command:
  """The command that `argv` (its first item the program) gives; UserError where it is wrong."""
  general = _general_flags()
  _parse_flags(general, argv, known_only=True)
  name, saved = general.experiment, {}
  if general.config:
    name, saved = _read_config(general.config, name)
  if general.list or not name:
    rest = _parse_flags(_general_flags(), argv)
    if rest:
      raise UserError(f'unexpected argument {rest[0]!r}: flags look like --name=value')
    return Command('', None, None, general.list, general.help)
  task = config.from_json(registry.find(name), saved)
  task = _apply_flags(task, argv)
  workdir = Path(general.workdir) if general.workdir else None
  return Command(name, task, workdir, False, general.help)


def _apply_flags(task: Task, argv: Sequence[str]) -> Any:
  """`task` with the leaves that `argv` sets."""
  values = _general_flags()
  leaves = config.leaves(task)
  for leaf in leaves:
    _define(values, leaf)
  rest = _parse_flags(values, argv)
  if rest:
    raise UserError(f'unexpected argument {rest[0]!r}: flags look like --name=value')
  given = {leaf.name: values[leaf.name].value for leaf in leaves if values[leaf.name].present}
  return config.override(task, given)


class _LeafParser(flags.ArgumentParser):
  """Parses the text of one leaf's flag."""

  def __init__(self, leaf: config.Leaf) -> None:
    super().__init__()
    self.leaf = leaf
    self.syntactic_help = config.describe(leaf.kind, leaf.metadata)

  def parse(self, argument: Any) -> Any:
    return config.parse(self.leaf, argument) if isinstance(argument, str) else argument

  def flag_type(self) -> str:
    return config.describe(self.leaf.kind)


def _define(values: flags.FlagValues, leaf: config.Leaf) -> None:
  doc = leaf.metadata.get('doc', '')
  if leaf.kind is bool:
    flags.DEFINE_boolean(leaf.name, leaf.value, doc, flag_values=values)
    return
  flag = flags.Flag(_LeafParser(leaf), flags.ArgumentSerializer(), leaf.name, None, doc)
  flags.DEFINE_flag(flag, values)


def _general_flags() -> flags.FlagValues:
  values = flags.FlagValues()
  values.set_gnu_getopt(True)
  flags.DEFINE_string('experiment', '', 'Its name.', flag_values=values)
  flags.DEFINE_string('config', '', 'A saved config.json.', flag_values=values)
  flags.DEFINE_string('workdir', '', 'Output folder.', flag_values=values)
  flags.DEFINE_string('flagfile', '', 'A file of flags.', flag_values=values)
  flags.DEFINE_boolean('list', False, 'List the experiments.', flag_values=values)
  flags.DEFINE_boolean('help', False, 'Show the flags.', flag_values=values, short_name='h')
  return values


def _parse_flags(
  values: flags.FlagValues, argv: Sequence[str], known_only: bool = False
) -> list[str]:
  """Fills `values` and returns what is left; an absl error becomes a UserError."""
  try:
    return values(list(argv), known_only=known_only)[1:]
  except flags.UnrecognizedFlagError as error:
    hint = '' if 'Did you mean' in str(error) else ' --help lists those there are.'
    raise UserError(f'{error}.{hint}' if hint else str(error)) from None
  except flags.Error as error:
    raise UserError(str(error)) from None


def _read_config(path: str, name: str) -> tuple[str, Mapping[str, Any]]:
  """(experiment, leaf values) of a saved config.json."""
  try:
    saved = json.loads(Path(path).read_text(encoding='utf-8'))
    found, values = saved['experiment'], saved['config']
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


def listing(entries: Mapping[str, registry.Entry]) -> str:
  """Every experiment and its one line."""
  width = max(map(len, entries), default=0)
  return '\n'.join(f'{name:{width}}  {entry.line}' for name, entry in sorted(entries.items()))


def welcome(entries: Mapping[str, registry.Entry]) -> str:
  """What to show someone who has named no experiment."""
  start = 'start with: python -m lmjax.main --experiment=posts_tiny'
  return f'{_USAGE}\n\nexperiments:\n{textwrap.indent(listing(entries), "  ")}\n\n{start}'


def help_text(command: Command) -> str:
  """The experiment, and each of its flags with default, what is allowed and what it means."""
  assert command.task is not None
  what = (type(command.task).__doc__ or '').split('\n')[0]
  width = min(shutil.get_terminal_size().columns, 110)
  lines = [_USAGE, '', f'flags of {command.experiment} ({what})', '']
  for leaf in config.leaves(command.task):
    value = ','.join(map(str, leaf.value)) if isinstance(leaf.value, tuple) else leaf.value
    lines.append(f'  --{leaf.name}={"none" if value is None else value}')
    allowed = config.describe(leaf.kind, leaf.metadata)
    about = f'{leaf.metadata.get("doc", "")} ({allowed}{"; may change between starts" if leaf.run else ""})'
    lines += textwrap.wrap(about, width, initial_indent=' ' * 6, subsequent_indent=' ' * 6)
  return '\n'.join(lines)
