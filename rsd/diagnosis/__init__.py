"""What a policy uses and what it ignores: measured on held-out frames of demonstrations, before the robot moves.

moments → interventions → answers ─┬─ verdict in words, findings
held-out episodes → replayed chunks ┘
"""
