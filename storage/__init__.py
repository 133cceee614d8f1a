"""How are logits kept, so that any number of students can train from them?

numpy and Zarr, no torch. The modules stand in levels, and each imports only those before it: errors and
progress, the format and its grid of blocks, encodings, files and the journal of commits, the store, its
writer and reader, and on top the stream and the dask view.
"""
