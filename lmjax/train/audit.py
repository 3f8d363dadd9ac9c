"""What a process read and restored, by hash, so that two runs can be compared to the bit.

    audit/0.jsonl, audit/1.jsonl, ...   one file a process, of all its starts

A line is about a batch, `{"step", "rows": {row: SHA-256}, "bytes_read"}`, about the parameters,
`{"step", "event": "restored" or "saved", "parameters_sha256"}`, or about the step that a run which was
told to stop would have taken next, `{"step", "event": "next", "loss", "gradient_norm"}`: what a start
in another layout has to come to.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax.core import tree
from lmjax.core.errors import UserError
from lmjax.parallel import hosts

FOLDER = 'audit'


class Audit:
  """Writes the lines of this process below `workdir`; with None, nothing."""

  def __init__(self, workdir: Path | None) -> None:
    self._path = workdir and workdir / FOLDER / f'{hosts.index()}.jsonl'
    if self._path:
      self._path.parent.mkdir(parents=True, exist_ok=True)

  def batch(self, step: int, rows: Sequence[int], batch: Any, bytes_read: int) -> None:
    """Notes the rows numbered `rows` of the batch of `step`, which `batch` holds."""
    if self._path:
      arrays = [np.ascontiguousarray(x) for x in jax.tree.leaves(batch)]
      digest = lambda i: hashlib.sha256(b''.join(x[i].tobytes() for x in arrays)).hexdigest()
      hashes = {str(row): digest(i) for i, row in enumerate(rows)}
      self._write({'step': step, 'rows': hashes, 'bytes_read': bytes_read})

  def params(self, event: str, step: int, params: Any) -> None:
    """Notes the hash of parameters, the same in both layouts. All processes must call."""
    if self._path:
      sha256 = tree.sha256(tree.stack(params))
      self._write({'step': step, 'event': event, 'parameters_sha256': sha256})

  def next(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Notes what `step` gave, which was taken after the last save and is not kept."""
    numbers = {name: float(metrics[name]) for name in ('loss', 'gradient_norm')}
    self._write({'step': step, 'event': 'next', **numbers})

  def _write(self, line: dict[str, Any]) -> None:
    assert self._path
    with self._path.open('a', encoding='utf-8') as file:
      file.write(json.dumps(line) + '\n')


def read_batches(workdir: Path) -> dict[int, str]:
  """SHA-256 of each global batch, over those of its rows in order, of what all processes noted.

  Raises:
    UserError: two processes, or two starts, read one row differently.
  """
  rows: dict[int, dict[int, str]] = {}
  for line in _lines(workdir):
    for row, digest in line.get('rows', {}).items():
      known = rows.setdefault(line['step'], {}).setdefault(int(row), digest)
      if known != digest:
        raise UserError(
          f'row {row} of step {line["step"]} was read in two ways in {workdir}: '
          'the posts changed between starts, restore them'
        )
  join = lambda found: hashlib.sha256(''.join(found[row] for row in sorted(found)).encode())
  return {step: join(found).hexdigest() for step, found in sorted(rows.items())}


def read_params(workdir: Path, event: str) -> dict[int, set[str]]:
  """step -> the hashes that processes noted of the parameters they restored, or saved, there."""
  found: dict[int, set[str]] = {}
  for line in _lines(workdir):
    if line.get('event') == event:
      found.setdefault(line['step'], set()).add(line['parameters_sha256'])
  return found


def read_next(workdir: Path) -> dict[int, dict[str, Any]]:
  """step -> what it gave where it was taken after a stop and not kept, the last time that it was."""
  return {line['step']: line for line in _lines(workdir) if line.get('event') == 'next'}


def _lines(workdir: Path) -> Iterator[dict[str, Any]]:
  for path in sorted((workdir / FOLDER).glob('*.jsonl')):
    with path.open(encoding='utf-8') as file:
      yield from map(json.loads, file)
