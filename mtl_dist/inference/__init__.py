"""Uses of a finished run: predict, evaluate, export and push."""
