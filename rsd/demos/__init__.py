"""Demonstrations: the scripted experts, and the collection of what they, or a policy, do in a simulator."""
