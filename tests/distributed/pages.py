"""Conversion of a documentation page to a shell script: its commands in order, with the expected result of each.

A comment above a fenced block, invisible to readers, marks the kind of the block:

- `<!-- file: NAME -->`: content of a file that the reader is to write;
- `<!-- not run: REASON -->`: commands for which a test has no network, GPU, container engine or cluster;
- `<!-- run with: ARGUMENTS -->`: commands of launch/submit.py that are run with more arguments, such as --dry-run;
- `<!-- exit: CODE -->`: commands of which the last ends with this exit code;
- `<!-- printed -->`: lines, or parts of lines, that the commands before must print.

Blocks of `bash` and `python` without a mark are run and must succeed; blocks of other languages are ignored.
"""

import re
import shlex
from dataclasses import dataclass, field

BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
MARKS = ("file", "not run", "run with", "exit", "printed")
DONE = "#### done with block"


@dataclass
class Command:
    """Block of commands that is run."""

    line: int
    """Line of the page at which the block begins."""
    script: str
    code: int = 0
    printed: list[str] = field(default_factory=list)
    """Parts of lines that the block must print."""


@dataclass
class Page:
    """Commands and files of a page."""

    commands: list[Command]
    files: dict[str, str]
    left_out: list[str]
    """Reasons why blocks are not run."""


def read_page(text: str) -> Page:
    """Parses a page; raises ValueError for an unknown or misplaced mark, because a typo must not skip a command."""
    page = Page([], {}, [])
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("text"))
        mark, _, value = (block["mark"] or "").partition(": ")
        if mark and mark not in MARKS:
            raise ValueError(f"line {line}: {block['mark']!r} is none of {', '.join(MARKS)}")
        if mark == "file":
            page.files[value] = block["text"]
        elif mark == "printed":
            page.commands[-1].printed += block["text"].splitlines()
        elif mark == "not run":
            page.left_out.append(value)
        elif block["kind"] in ("bash", "python"):
            script = block["text"]
            if block["kind"] == "python":
                script = f"python -c {shlex.quote(script)}\n"
            if mark == "run with":
                script = script.replace("launch/submit.py ", f"launch/submit.py {value} ")
            page.commands.append(Command(line, script, int(value) if mark == "exit" else 0))
    if text.count("<!-- ") != sum(block["mark"] is not None for block in BLOCK.finditer(text)):
        raise ValueError("a comment is not directly above a block")
    return page


def script_of(page: Page) -> str:
    """Returns all commands as one shell script, which prints a marker line after each block that has succeeded."""
    parts = ["set -eo pipefail"]
    for command in page.commands:
        text = command.script.rstrip("\n")
        if command.code:
            text = f"code=0\n({text}) || code=$?\ntest $code = {command.code}"
        parts += [text, f"echo '{DONE} {command.line}'"]
    return "\n".join(parts) + "\n"
