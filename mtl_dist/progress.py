"""Progress of long work: a bar on a terminal, plain lines in a log."""

LOG_LINE_SECONDS = 10.0
"""In a log without a terminal, a progress line at most this often."""
