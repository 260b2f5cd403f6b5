"""From files or Hugging Face datasets to tokenized, memory-mapped rows, and from rows to padded batches.

Does not decide which rows make up a batch; `schedule` does.
"""
