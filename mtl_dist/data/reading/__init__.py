"""Reading of tables in files, one reader for training, evaluation, prediction and inspection.

Every wanted column comes out as strings as they are written; nothing is typed by guess, what is ambiguous is refused.
What the strings mean (texts that are empty, classes of labels) is decided elsewhere.
"""
