"""A run whose workdir is on s3://, killed and gone on with, against a local server."""

import shutil
from pathlib import Path

import fsspec
import pytest
from object_store import in_bucket, s3_server
from runs import Run, at_step, resumed_at

from lmjax.core import storage
from lmjax.interop.load import load

HERE = Path(__file__).parent


@pytest.fixture(scope='module', autouse=True)
def server():
  with s3_server():
    yield


@pytest.mark.slow
def test_a_killed_run_on_s3_goes_on_from_the_bucket_alone(tmp_path, monkeypatch):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path))
  address = 's3://bucket/run'
  mirror = storage.mirror(address)
  run = Run(mirror, tmp_path, f'--workdir={address}', '--steps=30', '--evaluate_every=15')
  run.kill_at(at_step(12))
  shutil.rmtree(mirror)
  mirror.mkdir()
  assert 5 <= resumed_at(run.finish()) <= 15
  names = in_bucket('run')
  assert {'config.json', 'report.json', 'metrics.jsonl', 'ledger.json', 'tokenizer.json'} <= {
    *names
  }
  assert '30/checksums.json' in [name.removeprefix('checkpoints/') for name in names]
  assert any(name.startswith('tensorboard/') for name in names)
  assert not {'lock', 'owner.json'} & {*names}
  assert not (mirror / 'checkpoints').exists()
  assert [line['step'] for line in run.metrics if 'loss' in line] == list(range(1, 31))
  assert (
    fsspec.filesystem('s3').cat_file('bucket/run/report.json')
    == (mirror / 'report.json').read_bytes()
  )
  assert run.report['checkpoint']['path'] == f'{address}/checkpoints/30'
  monkeypatch.syspath_prepend(HERE)
  assert load(address).step == load(f'{address}/checkpoints/30').step == 30
