"""`python -m lmjax.main --experiment=NAME`: look it up, apply the flags, run it.

Kept short, so that everything else can be imported and tested. Exit codes: 0 done, 2 the user's
mistake, 75 saved after SIGTERM and wants to be started again, 1 anything else.
"""

import datetime
import os
import sys
from collections.abc import Sequence

from lmjax.core import command_line
from lmjax.core.compilation import keep_compiled
from lmjax.core.errors import UserError
from lmjax.core.task import default_workdir, hold_workdir, save_config, write_report


def main(argv: Sequence[str]) -> int:
  """Runs one command; returns its exit code."""
  try:
    command = command_line.parse(argv)
    if isinstance(command, str):
      show(command)
    else:
      run(command)
  except UserError as error:
    print(f'lmjax: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('lmjax: interrupted', file=sys.stderr)
    return 1
  return 0


def run(command: command_line.Command) -> None:
  """Runs the task in its workdir and leaves config.json and report.json there."""
  started = datetime.datetime.now(datetime.UTC)
  name, task, workdir = command
  workdir = workdir or default_workdir(task, name)
  with hold_workdir(workdir):
    save_config(task, name, workdir)
    keep_compiled()
    report = task.run(workdir)
    if 'schema' not in report:  # else it was finished before, and this is what it left then
      write_report(workdir, name, started, report)


def show(text: str) -> None:
  """Prints `text`, of which the reader may want but the first lines: `--help | head`."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    # Or Python would flush the rest when it exits, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == '__main__':
  sys.exit(main(sys.argv))
