"""`python -m lmjax.main --experiment=NAME`: look it up, apply the flags, run it.

Kept short, so that everything else can be imported and tested. Exit codes: 0 done, 2 the user's
mistake, 75 saved after SIGTERM and wants to be started again, 1 anything else.
"""

import datetime
import sys
from collections.abc import Sequence

from lmjax.core import command_line, registry
from lmjax.core.compilation import keep_compiled
from lmjax.core.errors import UserError
from lmjax.core.task import save_config, write_report


def main(argv: Sequence[str]) -> int:
  """Runs one command; returns its exit code."""
  try:
    command = command_line.parse(argv)
    if command.list:
      print(command_line.listing(registry.entries()))
    elif command.task is None:
      print(command_line.welcome(registry.entries()))
      return 0 if command.help else 2
    elif command.help:
      print(command_line.help_text(command))
    else:
      run(command)
  except UserError as error:
    print(f'lmjax: {error}', file=sys.stderr)
    return 2
  return 0


def run(command: command_line.Command) -> None:
  """Runs the task in its workdir and leaves config.json and report.json there."""
  started = datetime.datetime.now(datetime.UTC)
  task, workdir = command.chosen()
  keep_compiled()
  save_config(task, command.experiment, workdir)
  report = task.run(workdir)
  if 'schema' not in report:
    write_report(workdir, command.experiment, started, report)


if __name__ == '__main__':
  sys.exit(main(sys.argv))
