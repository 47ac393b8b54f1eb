"""Closed-loop evaluation: rollouts, results, statistics, reports. Blind to the policy that it measures."""
