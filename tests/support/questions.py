"""Selections of rows that a reader is asked for."""

import numpy as np
from hypothesis import strategies as st

QUESTIONS = st.one_of(
    st.builds(slice, st.integers(-40, 40), st.integers(-40, 40), st.sampled_from([None, 1, 3])),
    st.lists(st.integers(0, 36), max_size=12).map(sorted),
    st.lists(st.integers(0, 36), max_size=12).map(lambda rows: np.array(sorted(rows), dtype=np.uint16)),
    st.builds(range, st.integers(0, 37), st.integers(0, 37)),
)
