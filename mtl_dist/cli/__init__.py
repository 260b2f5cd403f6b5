"""The `mtl-dist` program, one file per command, and what the scripts in `launch/` run.

Command files import heavy modules inside their functions, so that help, completion and mistakes show at once.
"""
