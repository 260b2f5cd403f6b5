"""Sections of the page of one run: each function turns a run's record into a heading with rendered content."""
