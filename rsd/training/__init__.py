"""Lightning modules, one a phase: losses and metrics."""
