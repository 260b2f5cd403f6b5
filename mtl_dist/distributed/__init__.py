"""Processes of a run: messages and errors among ranks, the launch check, signals, hangs and exit codes.

Knows neither model nor engine; how gradients are exchanged is the business of `engines`.
"""
