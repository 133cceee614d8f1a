"""The states of the random generators of a process, compared before and after."""

import pickle

import numpy as np
import torch


def generator_states() -> list[bytes]:
    """Return the states of torch and NumPy, but not of `random`, which the check of types draws from."""
    return [torch.get_rng_state().numpy().tobytes(), pickle.dumps(np.random.get_state())]
