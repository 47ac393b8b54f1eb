"""What the commands have in common: entry points, their help, composed policies, sweeps, publishing, pipelines."""
