import datetime
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_tasks import Once, Tiny

import lmjax
from lmjax.core.errors import UserError
from lmjax.core.task import (
  default_workdir,
  device,
  hold_workdir,
  save_config,
  write_json,
  write_report,
)

COMMIT = 'from lmjax.core.task import _commit; print(_commit())'


@pytest.fixture
def here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


def read(path):
  return json.loads(Path(path).read_text(encoding='utf-8'))


class TestDefaultWorkdir:
  def test_of_a_task_that_resumes_is_its_name(self, here):
    assert default_workdir(Tiny(), 'tiny') == Path('runs/tiny')
    assert default_workdir(Tiny(), 'my.module:tiny') == Path('runs/tiny')

  def test_of_any_other_is_a_new_folder_each_time(self, here):
    folders = [default_workdir(Once(), 'once') for _ in range(3)]
    assert folders == [Path(f'runs/once-000{number}') for number in (1, 2, 3)]
    assert all(folder.is_dir() for folder in folders)

  def test_counts_on_from_the_last_and_passes_over_what_is_no_number(self, here):
    for name in ('once-0041', 'once-0002-old', 'once-more-0099', 'once-1b'):
      (here / 'runs' / name).mkdir(parents=True)
    assert default_workdir(Once(), 'once') == Path('runs/once-0042')

  def test_that_cannot_be_made_is_refused(self, here):
    (here / 'runs').write_text('a file')
    with pytest.raises(UserError, match=r'once-0001 cannot be written .*: pass --workdir=FOLDER'):
      default_workdir(Once(), 'once')


class TestSaveConfig:
  def test_writes_experiment_and_every_leaf(self, tmp_path):
    save_config(Tiny(width=3), 'tiny', tmp_path / 'new')
    found = read(tmp_path / 'new' / 'config.json')
    assert found['experiment'] == 'tiny'
    assert found['config']['width'] == 3
    assert found['config']['absent'] == 'none'

  def test_takes_changed_run_leaves_and_keeps_the_new(self, tmp_path):
    save_config(Tiny(), 'tiny', tmp_path)
    save_config(Tiny(pace=5), 'tiny', tmp_path)
    assert read(tmp_path / 'config.json')['config']['pace'] == 5

  def test_refuses_a_changed_identity_leaf_and_changes_nothing(self, tmp_path):
    save_config(Tiny(limit=None), 'tiny', tmp_path)
    before = (tmp_path / 'config.json').read_text()
    match = (
      r'begun with other settings \(width was 8, now 3; limit was none, now 4\): '
      r'pass the old values to continue it, or another --workdir'
    )
    with pytest.raises(UserError, match=match):
      save_config(Tiny(width=3, limit=4), 'tiny', tmp_path)
    assert (tmp_path / 'config.json').read_text() == before

  def test_refuses_a_workdir_of_another_experiment(self, tmp_path):
    save_config(Tiny(), 'tiny', tmp_path)
    for task in (Tiny(), Once()):
      with pytest.raises(UserError, match='holds a run of tiny, not of other: pass another --work'):
        save_config(task, 'other', tmp_path)

  def test_lets_a_task_that_does_not_resume_change(self, tmp_path):
    save_config(Once(), 'once', tmp_path)
    save_config(Once(width=3), 'once', tmp_path)
    assert read(tmp_path / 'config.json')['config'] == {'width': 3}

  @pytest.mark.parametrize('text', ['', '{"experiment": "ti', '[]', '{}', '{"experiment": "tiny"}'])
  def test_refuses_a_damaged_one(self, tmp_path, text):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(UserError, match=r'config.json is damaged: pass another --workdir'):
      save_config(Tiny(), 'tiny', tmp_path)

  def test_refuses_a_workdir_that_cannot_be_written(self, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'cannot be written .*: pass --workdir=FOLDER'):
      save_config(Tiny(), 'tiny', tmp_path / 'file' / 'below')


class TestHoldWorkdir:
  def test_refuses_a_second_holder_and_names_the_first(self, tmp_path):
    with hold_workdir(tmp_path):
      match = rf'in use by another process \(process {os.getpid()} of .*\): wait until it ends'
      with pytest.raises(UserError, match=match):
        hold_workdir(tmp_path)

  def test_is_free_again_when_the_holder_ends_or_dies(self, tmp_path):
    hold_workdir(tmp_path).close()
    source = 'import os, pathlib, sys\nfrom lmjax.core.task import hold_workdir\n'
    source += 'held = hold_workdir(pathlib.Path(sys.argv[1]))\nos.kill(os.getpid(), 9)'
    assert subprocess.run([sys.executable, '-c', source, str(tmp_path)]).returncode == -9
    hold_workdir(tmp_path).close()


class TestWriteJson:
  def test_gives_back_text_of_any_script_and_of_no_encoding(self, tmp_path):
    value = {'text': 'żółw 🐢 مرحبا', 'argument': os.fsdecode(b'\xff.txt')}
    write_json(tmp_path / 'new' / 'a.json', value)
    assert read(tmp_path / 'new' / 'a.json') == value
    assert '🐢' in (tmp_path / 'new' / 'a.json').read_text(encoding='utf-8')

  def test_leaves_the_old_file_and_no_draft_when_it_fails(self, tmp_path):
    write_json(tmp_path / 'a.json', 1)
    with pytest.raises(TypeError):
      write_json(tmp_path / 'a.json', {'a': object()})
    assert read(tmp_path / 'a.json') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['a.json']


class TestWriteReport:
  def test_holds_the_common_keys_and_those_of_the_task(self, tmp_path):
    started = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=5)
    report = write_report(tmp_path, 'tiny', started, {'loss': math.nan, 'all': [1.5, math.inf]})
    assert report == read(tmp_path / 'report.json')
    assert list(report)[:8] == [
      'schema', 'experiment', 'commit', 'versions', 'device', 'argv', 'started', 'seconds',
    ]  # fmt: skip
    assert report['schema'] == 1
    assert report['argv'] == sys.argv
    assert report['versions']['lmjax'] == lmjax.__version__
    assert datetime.datetime.fromisoformat(report['started']).utcoffset() is not None
    assert 5 <= report['seconds'] < 60
    assert report['loss'] is None
    assert report['all'] == [1.5, None]

  def test_takes_the_seconds_of_a_task_that_counts_them_itself(self, tmp_path):
    now = datetime.datetime.now(datetime.UTC)
    assert write_report(tmp_path, 'tiny', now, {'seconds': 77.0})['seconds'] == 77.0


def test_device_says_how_many_of_what():
  assert device().startswith('8 x cpu (')
  assert device().endswith(' cores)')


@pytest.mark.skipif(shutil.which('git') is None, reason='needs git')
class TestCommit:
  def commit(self, **variables):
    done = subprocess.run(
      [sys.executable, '-P', '-c', COMMIT],
      env=os.environ | variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()

  def test_is_that_of_the_checkout_that_lmjax_runs_from(self):
    root = Path(lmjax.__file__).parents[1]
    head = subprocess.run(['git', '-C', root, 'rev-parse', 'HEAD'], capture_output=True, text=True)
    assert self.commit() == (head.stdout.strip() if head.returncode == 0 else 'None')

  def test_is_none_of_a_copy_installed_inside_a_repository_of_the_user(self, tmp_path):
    installed = tmp_path / '.venv' / 'packages'
    skip = shutil.ignore_patterns('__pycache__')
    shutil.copytree(Path(lmjax.__file__).parent / 'core', installed / 'lmjax' / 'core', ignore=skip)
    shutil.copy(lmjax.__file__, installed / 'lmjax')
    (tmp_path / 'file').write_text('')
    for words in ('init', 'add file', '-c user.name=a -c user.email=a@b.c commit -m one'):
      subprocess.run(['git', '-C', tmp_path, *words.split()], check=True, capture_output=True)
    assert self.commit(PYTHONPATH=str(installed)) == 'None'

  def test_is_none_without_git(self, tmp_path):
    assert self.commit(PATH=str(tmp_path)) == 'None'
