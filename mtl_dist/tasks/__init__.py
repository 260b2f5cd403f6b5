"""What differs between kinds of tasks: head, loss and metrics."""
