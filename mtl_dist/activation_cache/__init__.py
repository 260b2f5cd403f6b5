"""Hidden states of the frozen layers, computed once per text and read while nothing below them trains."""
