"""Pages parsed into trees by the standard library; a page that is not well formed fails."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "col", "hr"}


@dataclass
class Node:
    """An element with its attributes and children."""

    name: str
    attributes: dict[str, str]
    children: list["Node | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def walk(self) -> Iterator["Node"]:
        """Yields all elements inside, in document order."""
        for child in self.children:
            if isinstance(child, Node):
                yield child
                yield from child.walk()

    def all(self, name: str) -> list["Node"]:
        return [node for node in self.walk() if node.name == name]

    def first(self, name: str) -> "Node":
        return self.all(name)[0]

    def by_class(self, name: str) -> list["Node"]:
        return [node for node in self.walk() if name in node.attributes.get("class", "").split()]

    def by_id(self, name: str) -> "Node":
        (found,) = (node for node in self.walk() if node.attributes.get("id") == name)
        return found


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Node("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        closed = self.open.pop()
        assert closed.name == tag, f"<{closed.name}> ends with </{tag}>"

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parsed(markup: str) -> Node:
    """Parses a page or a part of one; every element must be closed in order."""
    parser = _Parser()
    parser.feed(markup)
    parser.close()
    (root,) = parser.open
    return root


def cells(table: Node) -> list[list[str]]:
    """Returns the text of the cells of a table's body, by row."""
    return [[cell.text for cell in row.walk() if cell.name in ("th", "td")] for row in table.first("tbody").all("tr")]
