"""Whatever cites a section, a table or a figure of the FastMIM paper cites one that it has."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The paper's sections that this project cites, and what stands in them.
SECTIONS = {
    "3": "what a prediction target is, and other preliminaries of masked image modelling",
    "4": "FastMIM",
    "4.1": "the framework: mask, encoder, decoder, HOG as the target",
    "4.2": "FastMIM-P: resolution that grows",
    "5.1": "results on ImageNet-1K",
    "5.6": "distillation",
    "7": "several targets at once",
    "A.2": "ablations of the mask",
    "A.3.2": "settings of pre-training and fine-tuning",
    "A.3.3": "the grid search of fine-tuning",
    "A.4": "MAE at low resolution",
}
TABLES = {*map(str, range(1, 17)), "1a", "1b", "1c", "10a", "10b"}
FIGURES = set(map(str, range(1, 12)))
OTHERS = re.compile(r"arXiv|et al\.|MAE's paper")  # a sentence about another paper
CITED = re.compile(r"\(?[Pp]aper:? (?P<what>[^)\"]*?)(?:[.)\"]\s|\)|$)")
NUMBER = re.compile(
    r"\b(section|sections|appendix|table|tables|figure|figures) ((?:A\.)?\d+(?:\.\d+)*[a-c]?)"
)


def citations(text):
    """(kind, number) of what is cited as the paper's own."""
    for found in CITED.finditer(re.sub(r"\s+", " ", text)):
        if not OTHERS.search(found["what"]):
            for kind, number in NUMBER.findall(found["what"]):
                yield kind.rstrip("s"), number


def sources():
    return [*ROOT.glob("src/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]


def test_what_is_cited_is_there():
    seen = 0
    for file in sources():
        for kind, number in citations(file.read_text(encoding="utf-8")):
            known = {"table": TABLES, "figure": FIGURES}.get(kind, SECTIONS)
            assert number in known, f"{file.relative_to(ROOT)}: {kind} {number}"
            seen += 1
    assert seen > 20


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("HOG (paper: section 3.3).", [("section", "3.3")]),
        ("(paper: figure 5 and section 4.1)", [("figure", "5"), ("section", "4.1")]),
        ("(paper: appendix A.3.2, table 12).", [("appendix", "A.3.2"), ("table", "12")]),
        ("(He et al. 2021, section 4.3)", []),
    ],
)
def test_citations_are_found(text, found):
    assert list(citations(text)) == found
