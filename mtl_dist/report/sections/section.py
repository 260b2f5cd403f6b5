"""One section of the page."""

from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Section:
    """A section of the page; the navigation links to it."""

    title: str
    content: Markup
    note: str = ""
    """A sentence under the heading; empty for none."""

    @property
    def anchor(self) -> str:
        """The id of the section's element."""
        return self.title.lower().replace(" ", "-")
