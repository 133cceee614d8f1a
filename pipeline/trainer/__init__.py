"""The training of any network: loop, steps, log, checkpoints, resumption."""
