"""Hidden states of the frozen layers, computed once per text and reused while no layer below them is trained."""
