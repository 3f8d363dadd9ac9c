import importlib
import re
import sys

import pytest
from tiny_tasks import Once, Tiny

from lmjax.core.errors import UserError
from lmjax.core.registry import entries, experiment, find


@pytest.fixture
def module(tmp_path, monkeypatch):
  """Writes the source of a module of the user's and returns its name."""
  monkeypatch.syspath_prepend(tmp_path)

  def write(source, name='user_module'):
    (tmp_path / f'{name}.py').write_text(source)
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return name

  return write


class TestEntries:
  def test_are_the_experiments_that_their_modules_register(self):
    registered = {
      name
      for entry in entries().values()
      for name, value in vars(importlib.import_module(entry.module)).items()
      if callable(value) and getattr(value, '__module__', '') == entry.module
      if not name.startswith('_')
    }
    assert set(entries()) == registered
    assert {'posts_tiny', 'posts_sample', 'posts_moe_314b'} <= set(entries())

  def test_have_one_line_that_ends(self):
    for name, entry in entries().items():
      assert entry.line.endswith('.'), name
      assert len(name) + 2 + len(entry.line) <= 120, name


class TestExperiment:
  def test_returns_the_function(self):
    def known() -> Tiny:
      """Something."""
      return Tiny()

    assert experiment(known) is known

  def test_needs_a_docstring(self):
    def unknown() -> Tiny:
      return Tiny()

    with pytest.raises(TypeError, match='unknown needs a docstring: its first line is shown'):
      experiment(unknown)


class TestFind:
  def test_finds_an_experiment_of_lmjax(self):
    assert find('posts_tiny').resumes
    assert not find('posts_sample').resumes

  def test_finds_a_function_of_the_user(self):
    assert find('tiny_tasks:tiny') == Tiny()
    assert find('tiny_tasks:once') == Once()

  @pytest.mark.parametrize(
    ('name', 'what_to_do'),
    [
      ('posts_tin', r"unknown experiment 'posts_tin': did you mean posts_tiny\?"),
      ('zebra', r"unknown experiment 'zebra': known are: .*posts_tiny"),
      ('nowhere.at_all:tiny', r'no module \'nowhere.at_all\' on the Python path: start from its'),
      ('tiny_tasks.deeper:tiny', r'no module \'tiny_tasks.deeper\' on the Python path: start'),
      ('tiny_tasks:tinny', r"module tiny_tasks has no function 'tinny': did you mean .*tiny"),
      ('tiny_tasks:no_task', r'no_task returned int: return a lmjax.core.task.Task$'),
      ('tiny_tasks:broken', r'raised IndexError: list .* \(.*tiny_tasks.py, line \d+\)$'),
      ('tiny_tasks:out_of_range', r'out_of_range: width=0: expected an integer of 1 or more'),
      ('tiny_tasks:', r'expected package.module:function'),
      (':tiny', r'expected package.module:function'),
      ('.tiny_tasks:tiny', r'expected package.module:function'),
      ('tests/core/tiny_tasks.py:tiny', r'expected package.module:function'),
      ('tiny_tasks:tiny:tiny', r'expected package.module:function'),
    ],
  )
  def test_refuses_a_name_and_says_what_to_do(self, name, what_to_do):
    with pytest.raises(UserError, match=what_to_do) as caught:
      find(name)
    assert name in str(caught.value)
    assert '\n' not in str(caught.value)

  @pytest.mark.parametrize(
    ('source', 'told'),
    [
      ('import no_such_package', r'ModuleNotFoundError: No module.*user_module.py, line 1\)$'),
      ('x = 1\nx.missing', r'AttributeError: .*user_module.py, line 2\)$'),
      ('def tiny(:', r'SyntaxError: .*user_module.py, line 1\)$'),
      ('raise ValueError("two\\nlines")', r'ValueError: two lines \(.*user_module.py, line 1\)$'),
      ('def tiny(size): ...', r'TypeError: tiny\(\) missing 1 required positional argument'),
    ],
  )
  def test_says_what_a_module_of_the_user_raised_and_where(self, module, source, told):
    name = module(source)
    with pytest.raises(UserError, match=rf'^--experiment={name}:tiny raised {told}'):
      find(f'{name}:tiny')

  def test_lets_an_exit_pass(self, module):
    with pytest.raises(SystemExit):
      find(f'{module("raise SystemExit(75)")}:tiny')


@pytest.mark.parametrize('hiding', ['experiments/__init__.py', 'experiments.py'])
def test_a_package_that_hides_experiments_is_refused(tmp_path, monkeypatch, hiding):
  path = tmp_path / hiding
  path.parent.mkdir(exist_ok=True)
  path.write_text('')
  monkeypatch.syspath_prepend(tmp_path)
  for name in [name for name in sys.modules if name.partition('.')[0] == 'experiments']:
    monkeypatch.delitem(sys.modules, name)
  told = rf"Python's 'experiments' is {re.escape(str(tmp_path))}.*: run from another folder"
  with pytest.raises(UserError, match=told):
    entries.__wrapped__()
