"""Recipes are trained once for each configuration, and kept."""

import json

import tiny_tasks

from lmjax.core import recipes

NAME = 'tiny_tasks:tiny'


def test_a_recipe_runs_once_and_again_only_where_its_settings_changed(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path))
  folder = recipes.ready(NAME)
  report = json.loads((folder / 'report.json').read_text())
  assert (report['width'], report['experiment']) == (8, NAME)
  assert 'for the first time' in capsys.readouterr().out
  assert recipes.ready(NAME) == folder
  assert not capsys.readouterr().out
  monkeypatch.setattr(tiny_tasks, 'tiny', lambda: tiny_tasks.Tiny(width=3))
  other = recipes.ready(NAME)
  assert other != folder
  assert json.loads((other / 'report.json').read_text())['width'] == 3


def test_a_recipe_that_was_stopped_before_its_report_runs_again(tmp_path, monkeypatch):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path))
  folder = recipes.ready(NAME)
  (folder / 'report.json').unlink()
  assert recipes.ready(NAME) == folder
  assert (folder / 'report.json').exists()
