"""The commands of the `mtl-dist` program, one file per command."""
