"""Parameters and moments are born on their shards: no process ever holds more than its part."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

PROCESSES = 4


@pytest.mark.slow
def test_a_process_peaks_little_above_its_quarter_of_the_state():
  port = free_port()
  script = str(Path(__file__).with_name('born.py'))
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
  }
  started = [
    subprocess.Popen(
      [sys.executable, script, str(port), str(PROCESSES), str(number)],
      stdout=subprocess.PIPE,
      env=environment,
    )
    for number in range(PROCESSES)
  ]
  try:
    found = [json.loads(process.communicate(timeout=300)[0]) for process in started]
  finally:
    for process in started:
      process.kill()
      process.wait()
  for one in found:
    whole = 3 * 4 * one['params']
    assert one['params'] > 300e6
    assert one['state'] < 1.01 * whole / PROCESSES
    assert one['peak'] < one['before'] + 1.3 * whole / PROCESSES
