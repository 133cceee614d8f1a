"""Logits from and to plain files: `export` and `import`."""
