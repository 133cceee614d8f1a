"""Parts of a store, written block by block, sealed once, read without trust."""
