"""Simulated worlds behind the Env protocol of rsd.types. Importing this package loads no simulator."""
