"""A line for every request: who, what, how much and how it ended, and no text unless that is asked for."""

import datetime
import json
import threading
from pathlib import Path
from typing import Any


class Audit:
  """Writes `audit.jsonl`; called from any thread."""

  def __init__(self, path: Path, text: bool) -> None:
    """`text`: also write what was asked and answered."""
    self.text = text
    self._file = path.open('a', encoding='utf-8', errors='replace')
    self._lock = threading.Lock()

  def write(self, entry: dict[str, Any]) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
    kept = {key: x for key, x in entry.items() if self.text or key not in ('asked', 'answered')}
    line = json.dumps({'time': now, **kept}, ensure_ascii=False)
    with self._lock:
      self._file.write(line + '\n')
      self._file.flush()

  def close(self) -> None:
    self._file.close()
