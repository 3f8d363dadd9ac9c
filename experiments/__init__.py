"""Registered runs: functions that return a task. Values only, no logic."""
