import jax
import jax.numpy as jnp
import pytest

from lmjax.core.clock import Ledger
from lmjax.core.errors import UserError
from lmjax.train.profile import Profile, step_range


@pytest.fixture
def trace(tmp_path):
  """Takes steps done + 1 .. last with some of them profiled; how many traces that leaves."""

  def take(steps, done, last):
    folder = tmp_path / 'profile'
    profile = Profile(steps, folder, Ledger(tmp_path / 'ledger.json'))
    step = profile.wrap(jax.jit(lambda state, batch: (state + batch, {'loss': batch})), done)
    state = jnp.zeros(())
    for _ in range(done, last):
      state, metrics = step(state, jnp.ones(()))
    profile.close()
    assert state == last - done
    assert metrics['loss'] == 1
    return len(list(folder.glob('**/*.xplane.pb')))

  return take


@pytest.mark.parametrize(
  ('done', 'last'),
  [(0, 9), (0, 4), (3, 9), (4, 5)],
  ids=['within the run', 'ends after the run', 'begun in an earlier start', 'both'],
)
def test_steps_of_the_range_leave_one_trace(trace, done, last):
  assert trace((3, 5), done, last) == 1


@pytest.mark.parametrize(
  ('steps', 'done', 'last'),
  [((3, 5), 5, 9), ((3, 5), 0, 2), (None, 0, 9)],
  ids=['taken before', 'after the end', 'none asked for'],
)
def test_without_a_step_of_the_range_there_is_no_trace(trace, steps, done, last):
  assert trace(steps, done, last) == 0


@pytest.mark.parametrize('text', ['5', '5:', ':5', '7:5', '0:3', 'a:b', '-1:3', '1:2:3'])
def test_what_is_no_range_of_steps_is_refused(text):
  with pytest.raises(UserError, match='expected FIRST:LAST, two steps such as 10:15'):
    step_range(text)


def test_a_range_of_steps_is_read():
  assert step_range('10:15') == (10, 15)
  assert step_range('3:3') == (3, 3)
  assert step_range('') is None
