"""What differs between kinds of tasks: head, loss, metrics and the form of a prediction."""
