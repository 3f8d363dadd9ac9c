"""Several processes of `member.py`: start them, wait for them, read what they print, look at what they saved."""

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import member
from ports import free_port

from lmjax.checkpoint.store import Store
from lmjax.core import tree

TIMEOUT = 300.0


class Members:
  """Processes of `member.py`, one for each of `folders`, and the files of what they print."""

  def __init__(
    self, logs: Path, folders: Sequence[Path | str], devices: int, *actions: str
  ) -> None:
    coordinator = f'localhost:{free_port()}'
    self.logs = [logs / f'{process}.log' for process in range(len(folders))]
    self.processes = []
    for process, (folder, log) in enumerate(zip(folders, self.logs, strict=True)):
      numbers = [str(number) for number in (len(folders), process, devices)]
      command = [sys.executable, member.__file__, coordinator, *numbers, str(folder), *actions]
      with log.open('wb') as file:
        self.processes.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))

  def codes(self) -> list[int]:
    """The exit codes, once all have ended."""
    deadline = time.monotonic() + TIMEOUT
    return [process.wait(deadline - time.monotonic()) for process in self.processes]

  def said(self, word: str, process: int = 0) -> list[int]:
    """The steps of which `process` has said `word`."""
    return [int(step) for step in re.findall(rf'^{word} (\d+)', self.text(process), re.M)]

  def text(self, process: int) -> str:
    return self.logs[process].read_text()


@contextlib.contextmanager
def started(
  logs: Path,
  folder: Path | Sequence[Path | str],
  *actions: str,
  processes: int = 2,
  devices: int = 2,
) -> Iterator[Members]:
  folders = [folder] * processes if isinstance(folder, Path) else folder
  members = Members(logs, folders, devices, *actions)
  try:
    yield members
  finally:
    for process in members.processes:
      process.kill()
      process.wait()


def restored_step(folder: Path) -> int:
  """The step that one process finds, checked to be what was saved under it."""
  with Store(folder, keep_latest=2, keep_every=None, files={}) as store:
    found = store.restore(member.abstract(fsdp=4))
  assert found is not None
  assert tree.sha256(found.state) == tree.sha256(member.make_host_state(found.step))
  assert found.extra == {'step': found.step}
  return found.step
