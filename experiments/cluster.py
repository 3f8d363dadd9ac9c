"""Checks of the machines that runs are started on."""

from lmjax.core.registry import experiment
from lmjax.plan.doctor import Doctor


@experiment
def doctor() -> Doctor:
  """Check this machine or cluster before a long run, and say what to mend."""
  return Doctor()
