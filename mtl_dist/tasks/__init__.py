"""Types of tasks: the head, the loss and the metrics of each."""
