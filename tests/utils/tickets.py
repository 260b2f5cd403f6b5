"""A table of support tickets as companies have them: three label columns with holes, some texts more than once."""

import csv
import io
import random
from collections.abc import Sequence
from pathlib import Path

ROWS = 2400
TEAMS = {
    "billing": ("the invoice of {month}", "the refund for {product}", "a payment by card", "the price of {product}"),
    "technical": ("the login of {product}", "a crash of {product}", "the export to PDF", "sync with my phone"),
    "sales": (
        "an offer for {product}",
        "licences for {number} users",
        "a trial of {product}",
        "a discount for schools",
    ),
    "shipping": ("the parcel of {month}", "the delivery of {product}", "a damaged box", "our new address"),
}
"""What a ticket of each team is about."""
URGENCIES = {
    "low": ("There is no hurry.", "Whenever you find the time.", "I am just wondering."),
    "medium": ("Please answer this week.", "I would like to know by {month}.", "A reply in the next days is fine."),
    "high": ("Our whole office is down!", "I need an answer today.", "This is urgent, we cannot work."),
}
MOODS = {
    "calm": ("Thank you for your help.", "Kind regards", "All else works fine."),
    "angry": ("This is the third time I write!", "I am really fed up.", "Unacceptable."),
}
COLUMNS = ("id", "created", "customer", "text", "team", "urgency", "mood")
_OPENINGS = ("Hello,", "Dear team,", "Hi there,", "Good morning,", "To whom it may concern,", "Hi,")
_VERBS = ("I have a question about", "we are writing because of", "please look at", "can you tell me more about")
_WORDS = {
    "month": ("January", "March", "May", "July", "October", "December"),
    "product": ("Planner", "Planner Pro", "the mobile app", "the web shop", "Café Suite"),
    "number": ("three", "10", "25", "200"),
}


def tickets(rows: int = ROWS, seed: int = 0) -> list[dict[str, str]]:
    """Rows of the table with the columns COLUMNS, equal for equal arguments.

    The words of a text tell its labels. A missing label is the empty string: about 5 % of the teams, 20 % of the
    urgencies and 35 % of the moods. One row in 40 repeats an earlier row's text, a quarter of these with another mood.
    """
    source = random.Random(seed)
    table: list[dict[str, str]] = []
    for number in range(rows):
        labels = {
            "team": source.choices(list(TEAMS), (40, 30, 20, 10))[0],
            "urgency": source.choices(list(URGENCIES), (50, 35, 15))[0],
            "mood": source.choices(list(MOODS), (70, 30))[0],
        }
        text = _text(source, labels)
        if number >= 40 and source.random() < 1 / 40:
            earlier = table[source.randrange(number)]
            labels, text = {name: earlier[name] for name in labels}, earlier["text"]
            if labels["mood"] and source.random() < 0.25:
                labels["mood"] = "calm" if labels["mood"] == "angry" else "angry"
        for name, holes in (("team", 0.05), ("urgency", 0.2), ("mood", 0.35)):
            if source.random() < holes:
                labels[name] = ""
        table.append(
            {
                "id": str(10_000 + number),
                "created": f"2024-{1 + number * 12 // rows:02d}-{source.randint(1, 28):02d}",
                "customer": f"C{source.randrange(max(2, rows // 6)):04d}",
                "text": text,
                **labels,
            }
        )
    return table


def write_tickets(
    path: Path, rows: int = ROWS, seed: int = 0, delimiter: str = ",", encoding: str = "utf-8"
) -> list[dict[str, str]]:
    """Writes the table of `tickets` as a CSV file; returns its rows."""
    table = tickets(rows, seed)
    path.write_bytes(csv_text(table, COLUMNS, delimiter).encode(encoding))
    return table


def csv_text(rows: Sequence[dict[str, str]], columns: Sequence[str], delimiter: str = ",") -> str:
    """Rows as the text of a CSV file with a header."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _text(source: random.Random, labels: dict[str, str]) -> str:
    subject = f"{source.choice(_VERBS)} {source.choice(TEAMS[labels['team']])}."
    order = f"My order is {source.randrange(100_000)}." if source.random() < 0.6 else ""
    urgency, mood = source.choice(URGENCIES[labels["urgency"]]), source.choice(MOODS[labels["mood"]])
    parts = [source.choice(_OPENINGS), subject, order, urgency, mood]
    words = {name: source.choice(known) for name, known in _WORDS.items()}
    return " ".join(part for part in parts if part).format(**words)
