"""What a person wants to know before training: a first recipe for a table, and the data of a recipe in figures.

Looks at tables, and proposes; what a recipe's rows and labels are is decided in `data` alone.
"""
