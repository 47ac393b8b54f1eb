"""Errors that speak to whoever gave the command: which thing, what was expected, what was found, what to do.

An entry point prints them as one line (rsd/commands/error_reports.py). Everything else that is raised is a defect, and
keeps its traceback on the screen. Rooms have classes of their own, which also derive from the built-in class that fits.
"""

from __future__ import annotations


class RSDError(Exception):
    """Base class of all errors of this package; catch it to catch them all."""


class SettingError(RSDError, ValueError):
    """A value in the configuration, or of an option on the command line, cannot be used."""
