"""The files of a store: names, metadata, blocks, arrays, chunks and shards (docs/format-v1.md)."""
