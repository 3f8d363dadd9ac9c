"""A run goes on over other numbers of processes and other meshes as if nothing had happened."""

import pytest

from lmjax.core.errors import UserError
from lmjax.train import audit
from lmjax.train.elastic import Elastic


@pytest.mark.slow
@pytest.mark.long
def test_a_run_that_changes_its_processes_and_mesh_is_the_run_that_does_not(tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setenv('JAX_SHARE_BINARY_BETWEEN_HOSTS', 'true')  # one process of a start compiles
  elastic = Elastic()
  report = elastic.run(tmp_path)
  assert report['ok']
  assert report['batches_equal'] == report['steps'] == elastic.steps == 240
  assert report['epochs_exact']
  assert [arrow['processes'] for arrow in report['arrows']] == [1, 4, 2, 3]
  assert report['largest_gap'] > 0  # sums in another order: these are other programs
  for arrow in report['arrows']:
    assert max(arrow['loss_gap'], arrow['gradient_norm_gap']) <= 1e-5
    assert arrow['parameters_equal']


@pytest.mark.parametrize('layout', ['', '0', 'x:data=2', '-1:data=2'])
def test_a_layout_that_is_none_is_refused(tmp_path, layout):
  with pytest.raises(UserError, match='expected PROCESSES:AXIS=SIZE:AXIS=SIZE'):
    Elastic(layouts=(layout,)).run(tmp_path)


def test_a_row_that_two_processes_read_differently_is_found(tmp_path):
  folder = tmp_path / audit.FOLDER
  folder.mkdir()
  (folder / '0.jsonl').write_text('{"step": 3, "rows": {"0": "a", "1": "b"}, "bytes_read": 1}\n')
  (folder / '1.jsonl').write_text('{"step": 3, "rows": {"2": "c", "1": "b"}, "bytes_read": 1}\n')
  assert list(audit.read_batches(tmp_path)) == [3]
  (folder / '1.jsonl').write_text('{"step": 3, "rows": {"1": "x"}, "bytes_read": 1}\n')
  with pytest.raises(UserError, match='row 1 of step 3 was read in two ways'):
    audit.read_batches(tmp_path)
