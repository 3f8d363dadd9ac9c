"""Machines that runs are started on: checked before, or planned before there are any."""

from lmjax.core.registry import experiment
from lmjax.plan.backtest import Backtest
from lmjax.plan.doctor import Doctor
from lmjax.plan.planner import Plan


@experiment
def doctor() -> Doctor:
  """Check this machine or cluster before a long run, and say what to mend."""
  return Doctor()


@experiment
def plan() -> Plan:
  """Compile a run for GPUs that are not here, up to 10,240 of them, and say what it will cost."""
  return Plan()


@experiment
def plan_backtest() -> Backtest:
  """Compare the time model of plans with published results on 8 to 2,048 GPUs: some minutes."""
  return Backtest()
