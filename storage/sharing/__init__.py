"""Stores copied, merged and found: between disks, object stores and web servers."""
