"""Recipes: the schema of every key, the loading of files and overrides, and the rules that need no data or encoder.

Reads no data and loads no model; imports neither torch nor transformers, so that help and errors appear at once.
"""
