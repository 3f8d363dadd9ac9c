"""`python -m lmjax.main --experiment=NAME`: look it up, apply the flags, run it.

Kept short, so that everything else can be imported and tested. Exit codes: 0 done, 2 the user's
mistake, 75 saved after SIGTERM and wants to be started again, 1 anything else.
"""

import datetime
import gc
import os
import signal
import sys
from collections.abc import Sequence

from lmjax.core import processor

if __name__ == '__main__':
  processor.use_large_pages()  # starts Python again: before anything that takes time to import
  gc.disable()  # what is imported stays: to look for garbage among it took 0.2 s

from lmjax.core import command_line
from lmjax.core.compilation import keep_compiled, look_for_no_absent_gpu
from lmjax.core.errors import UserError
from lmjax.core.task import EXIT_AGAIN, opened, write_report


def main(argv: Sequence[str]) -> int:
  """Runs one command; returns its exit code."""
  try:
    command = command_line.parse(argv)
    gc.enable()
    if not isinstance(command, str):
      return run(command)
    show(command)
  except UserError as error:
    print(f'lmjax: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('lmjax: interrupted', file=sys.stderr)
    return 1
  return 0


def run(command: command_line.Command) -> int:
  """Runs the task and leaves config.json and report.json; 1 if the report is that not all is ok."""
  started = datetime.datetime.now(datetime.UTC)
  name, task, workdir = command
  with opened(task, name, workdir) as (workdir, writes):
    keep_compiled()
    report = task.run(workdir)
    if writes and 'schema' not in report:  # else it was finished before, and this is what it left
      write_report(workdir, name, started, report)
  return 0 if report.get('ok', True) else 1


def show(text: str) -> None:
  """Prints `text`, of which the reader may want but the first lines: `--help | head`."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    # Or Python would flush the rest when it exits, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == '__main__':
  # Until a task takes care of it there is nothing to save, but the job is to be started again.
  signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_AGAIN))
  look_for_no_absent_gpu()
  sys.exit(main(sys.argv))
