"""From files or hub data sets to tokenized, memory-mapped rows, and from rows to padded batches.

Which rows make up a batch is decided in `schedule`.
"""
