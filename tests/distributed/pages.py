"""A page of documentation as a script: its commands in order, and what must become of each.

Above a fenced block, a comment that readers do not see says what it is:

- `<!-- file: NAME -->`: a file that the page has its reader write;
- `<!-- not run: REASON -->`: commands for which a test has no network, GPU, container engine or cluster;
- `<!-- run with: WORDS -->`: commands of launch/submit.py that get these words more, say --dry-run;
- `<!-- exit: CODE -->`: commands of which the last ends with this code;
- `<!-- printed -->`: lines that begin or are part of a line printed by the commands before.

Blocks of `bash` and `python` without one are run and must succeed; others are there to be looked at.
"""

import re
import shlex
from dataclasses import dataclass, field

BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
MARKS = ("file", "not run", "run with", "exit", "printed")
DONE = "#### done with block"


@dataclass
class Command:
    """A block that is run."""

    line: int
    """Of the page, where it begins."""
    script: str
    code: int = 0
    printed: list[str] = field(default_factory=list)
    """Parts of lines that it prints."""


@dataclass
class Page:
    """What a page has to run, and the files that it names."""

    commands: list[Command]
    files: dict[str, str]
    left_out: list[str]
    """The reasons."""


def read_page(text: str) -> Page:
    """Raises ValueError for a mark that means nothing, so that a slip leaves nothing out."""
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
            words = block["text"]
            if block["kind"] == "python":
                words = f"python -c {shlex.quote(words)}\n"
            if mark == "run with":
                words = words.replace("launch/submit.py ", f"launch/submit.py {value} ")
            page.commands.append(Command(line, words, int(value) if mark == "exit" else 0))
    if text.count("<!-- ") != sum(block["mark"] is not None for block in BLOCK.finditer(text)):
        raise ValueError("a comment is not directly above a block")
    return page


def script_of(page: Page) -> str:
    """All commands for one shell, as a reader has it, and after each block a line that says how it ended."""
    parts = ["set -eo pipefail"]
    for command in page.commands:
        text = command.script.rstrip("\n")
        if command.code:
            text = f"code=0\n({text}) || code=$?\ntest $code = {command.code}"
        parts += [text, f"echo '{DONE} {command.line}'"]
    return "\n".join(parts) + "\n"
