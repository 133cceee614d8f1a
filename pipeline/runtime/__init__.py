"""The machinery below every stage: devices, ranks, inference, dask tasks, work done ahead."""
