"""What the detectors find and miss on public data, and what they cost: `python -m tools.measure_detectors FOLDER`.

FOLDER holds checkouts by their names, any of them: `presidio-research`, `secretlint`, `prompt-injection-defense`, `BIPIA`. None of
their data is part of this repository. Precision and recall are of texts or of spans, as each line says. Costs are processor time.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from remit_broker.adapters.content.search import Search, Span, Work
from remit_broker.adapters.detectors import ContentDetectors

SEARCH = Search()
DETECTORS = ContentDetectors()

PRESIDIO = {
    "CREDIT_CARD": "pii.card",
    "EMAIL_ADDRESS": "pii.email",
    "IBAN_CODE": "pii.iban",
    "IP_ADDRESS": "pii.ip",
    "PHONE_NUMBER": "pii.phone",
    "US_DRIVER_LICENSE": "pii.driver_license",
    "US_SSN": "pii.us_ssn",
}
"""Their names of what both look for; people, places and dates are looked for by none of the tables."""


class Score(NamedTuple):
    """Counts over one set. Where a set has no good examples, precision says nothing, and the other way round."""

    found: int
    wanted: int
    wrong: int
    clean: int
    unit: str

    def row(self, name: str) -> str:
        """One line of the table."""
        recall = f"{self.found / self.wanted:.1%} ({self.found} of {self.wanted})" if self.wanted else "-"
        said = self.found + self.wrong
        precision = f"{self.found / said:.1%}" if said and self.wanted and self.clean else "-"
        wrong = f"{self.wrong} of {self.clean}" if self.clean else "-"
        return f"| {name} | {self.unit} | {recall} | {precision} | {wrong} |"


def spans(text: str) -> list[Span]:
    """What is found in one text."""
    return SEARCH.spans(text.encode(errors="surrogatepass"), Work())


def classes(text: str, name: str) -> bool:
    """Whether a finding of the class is in a text, as it would be in a result."""
    return any(finding.kind.startswith(name + ".") for finding in DETECTORS.scan({"text": text}))


def presidio(folder: Path) -> Iterator[tuple[str, Score]]:
    """Spans of synthetic sentences. Found is what overlaps a span of the same type; wrong what overlaps none of any type."""
    cases = json.loads((folder / "data/synth_dataset_v2.json").read_text())
    found, wanted, wrong = Counter[str](), Counter[str](), Counter[str]()
    for case in cases:
        text = case["full_text"]
        ours = [
            (len(text.encode()[: span.start].decode()), len(text.encode()[: span.end].decode()), span.kind)
            for span in spans(text)
            if span.kind.startswith("pii.")
        ]
        theirs = [(s["start_position"], s["end_position"], s["entity_type"]) for s in case["spans"]]
        for start, end, kind in theirs:
            if kind in PRESIDIO:
                wanted[PRESIDIO[kind]] += 1
                found[PRESIDIO[kind]] += any(s < end and e > start and k == PRESIDIO[kind] for s, e, k in ours)
        for start, end, kind in ours:
            wrong[kind] += not any(s < end and e > start for s, e, _ in theirs)
    for kind in sorted(wanted):
        yield (
            f"presidio-research synth_dataset_v2, `{kind}`",
            Score(found[kind], wanted[kind], wrong[kind], len(cases), "spans"),
        )
    rest = sum(count for kind, count in wrong.items() if kind not in wanted)
    yield "presidio-research synth_dataset_v2, other `pii.*`", Score(0, 0, rest, len(cases), "spans")


def secretlint(folder: Path) -> Iterator[tuple[str, Score]]:
    """The rules' own examples: `ng.*` holds a secret, `ok.*` none. What names no secret (homes, dotenv files) is left out."""
    left_out = re.compile(r"rule-(no-|example|internal|filter|pattern|preset|secp256k1|k8s)")
    texts: dict[bool, list[str]] = {True: [], False: []}
    for file in sorted(folder.glob("packages/@secretlint/secretlint-rule-*/test/snapshots/*/input*")):
        sort = file.parent.name.split(".")[0].lower()
        if file.is_file() and not left_out.search(str(file)) and sort in ("ok", "ng"):
            texts[sort == "ng"].append(file.read_text(errors="replace"))
    bad, good = (sum(classes(text, "secret") for text in texts[sort]) for sort in (True, False))
    yield (
        "secretlint, examples of its rules, `secret.*`",
        Score(bad, len(texts[True]), good, len(texts[False]), "texts"),
    )


def injections(folder: Path) -> Iterator[tuple[str, Score]]:
    """Texts with a label: 1 is an attack. `notinject` holds ordinary questions with words that attacks like."""
    for name in (
        "prompt_injections",
        "adversarial_training",
        "multilang_attacks",
        "notinject_expanded",
        "synthetic_safe_prompts",
    ):
        cases = json.loads((folder / f"data/{name}.json").read_text())
        yield f"prompt-injection-defense {name}, `injection.*`", labelled(cases)
    cache = folder / "data/tensortrust_cache.json"
    attacks = [{"text": text, "label": 1} for text in json.loads(cache.read_text())["texts"]]
    yield "prompt-injection-defense tensortrust_cache, `injection.*`", labelled(attacks)


def labelled(cases: list[dict[str, Any]]) -> Score:
    """The score over texts with a label."""
    said = [(case["label"], classes(case["text"], "injection")) for case in cases]
    attacks = sum(1 for label, _ in said if label)
    return Score(
        sum(1 for label, found in said if label and found), attacks,
        sum(1 for label, found in said if not label and found), len(said) - attacks, "texts",
    )  # fmt: skip


def bipia(folder: Path) -> Iterator[tuple[str, Score]]:
    """Attacks that are plain requests, without any sign of being attacks; mails without attacks."""
    attacks = json.loads((folder / "benchmark/text_attack_test.json").read_text())
    texts = [text for several in attacks.values() for text in several]
    mails = [json.loads(line)["context"] for line in (folder / "benchmark/email/test.jsonl").read_text().splitlines()]
    score = Score(
        sum(classes(text, "injection") for text in texts), len(texts),
        sum(classes(mail, "injection") for mail in mails), len(mails), "texts",
    )  # fmt: skip
    yield "BIPIA text_attack_test and email, `injection.*`", score


SETS: dict[str, Callable[[Path], Iterator[tuple[str, Score]]]] = {
    "secretlint": secretlint,
    "presidio-research": presidio,
    "prompt-injection-defense": injections,
    "BIPIA": bipia,
}


def costs(folder: Path) -> Iterator[str]:
    """Microseconds of processor time for 2 KiB of text in a result, the least of several rounds."""
    for file in ("docs/life-of-a-hop.md", "docs/policy.md", "docs/operations.md", "LICENSE"):
        value = {"content": [{"type": "text", "text": (folder / file).read_text()[2048:4096]}]}
        best = min(clock(value) for _ in range(7))
        kinds = ", ".join(sorted({finding.kind for finding in DETECTORS.scan(value)})) or "nothing"
        yield f"| {file} | {best:.0f} µs | {kinds} |"


def clock(value: object, times: int = 200) -> float:
    """Processor time of one scan in microseconds."""
    began = time.process_time()
    for _ in range(times):
        DETECTORS.scan(value)
    return (time.process_time() - began) / times * 1e6


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="What the detectors find and miss on public data, and what they cost.")
    parser.add_argument("folder", type=Path, help="holds checkouts of " + ", ".join(SETS))
    folder = parser.parse_args().folder
    print("| set | of | recall | precision | wrong among clean |\n|---|---|---|---|---|")
    for name, measure in SETS.items():
        if (folder / name).is_dir():
            for what, score in measure(folder / name):
                print(score.row(what))
    print("\n| 2 KiB of | processor time | found |\n|---|---|---|")
    print("\n".join(costs(Path(__file__).resolve().parent.parent)))


if __name__ == "__main__":
    main()
