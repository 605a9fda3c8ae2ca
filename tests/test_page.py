"""The report's page in a real browser."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from pages import ROWS, Row, classified
from sample import OPEN, STOPS, Sample

import virnucpro_core as vnp
from virnucpro_core.results.report import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")

EVIL = "\"><img/src=x/onerror=alert(1)>&amp;'`${1}/%2F#?"
SHOWN = "[...document.querySelectorAll('#table tbody:not(#paper) th a')].map(a => a.textContent)"
NUMBER = "document.getElementById('shown').textContent"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 3,000 contigs of two samples, and one that was left out."""
    folder = tmp_path_factory.mktemp("many")
    rows: list[Row] = [
        (f"k{i}", 200 + 7 * i, "virus" if i % 10 == 0 else "other", round(i % 1000 / 1000, 4))
        for i in range(2996)
    ]
    left_out = folder / "broken"
    left_out.mkdir()
    (left_out / "refused.txt").write_text("virnucpro: broken.fa: the file is empty.\n")
    outs = [
        classified(folder / "a", [*rows, *ROWS], "A"),
        left_out,
        classified(folder / "b", [(EVIL, 900, "virus", 0.9999)], "B/<b>%"),
    ]
    write_report(outs, folder / "report.html")
    return folder / "report.html"


@pytest.fixture
def page(tab: Browser, many: Path) -> Iterator[Browser]:
    """The page of `many`; whatever is done, nothing is logged and nothing is asked for."""
    tab("Page.navigate", url="about:blank")
    tab.open(many)
    yield tab
    assert tab.said == []


def fill(page: Browser, field: str, value: str) -> None:
    element = f"document.getElementById({json.dumps(field)})"
    page.run(f"{element}.value = {json.dumps(value)}")
    page.run(f"{element}.dispatchEvent(new Event('input', {{bubbles: true}}))")


def test_table_has_all_contigs_and_few_elements(page: Browser) -> None:
    assert page.run(NUMBER) == "3,001 of 3,001 contigs"
    shown = page.run(SHOWN)
    assert shown[0] == EVIL
    assert len(shown) < 60
    page.run("document.getElementById('contig-table').scrollTop = 1e9")
    page.until(f"{SHOWN}.at(-1) === 'tiny'")
    assert page.run("document.getElementById('table').rows.length") < 160


def test_search_and_filters_narrow_the_table_down(page: Browser) -> None:
    fill(page, "search", "K299")
    assert page.run(NUMBER) == "7 of 3,001 contigs"
    page.click("#clear")
    assert page.run(NUMBER) == "3,001 of 3,001 contigs"
    page.click("[name=call][value=no_call] + span")
    assert page.run(SHOWN) == ["closed", "tiny"]
    page.click("#clear")
    fill(page, "f-sample", "1")
    assert page.run(SHOWN) == [EVIL]
    page.click("#clear")
    fill(page, "f-score-from", "0.5")
    fill(page, "f-score-below", "0.502")
    fill(page, "f-length-to", "4000")
    assert sorted(page.run(SHOWN)) == ["k500", "k501"]
    fill(page, "search", "none such")
    assert page.run("document.getElementById('none').checkVisibility()")


def test_a_click_on_a_head_sorts_and_the_next_turns_it(page: Browser) -> None:
    page.click(".c-length button")
    assert page.run(SHOWN)[:2] == ["phage", "k2995"]
    page.click(".c-length button")
    assert page.run(SHOWN)[:2] == ["tiny", "k0"]
    assert page.run("document.querySelector('thead .c-length').ariaSort") == "ascending"
    page.click("thead .c-name button")
    assert page.run(SHOWN)[1:4] == ["closed", "host", "k0"], "numbers in names count as such"


def test_a_bar_a_dot_and_a_tile_lead_to_their_contigs(page: Browser) -> None:
    for mark in ("rect.virus[data-show]", "circle.other[data-show]", ".tiles .no_call a"):
        page.click("#clear")
        wanted = json.loads(page.run(f"document.querySelector('{mark}').dataset.show"))
        page.run(
            f"document.querySelector('{mark}')"
            ".dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true}))"
        )
        said = page.run(NUMBER)
        assert said != "3,001 of 3,001 contigs"
        title = page.run(f"document.querySelector('{mark} title')?.textContent ?? ''")
        assert title.split(" ")[0] in ("", said.split(" ")[0])
        assert page.run("document.querySelector('[name=call]:checked').value") == wanted["call"]


def test_a_bar_is_reached_and_followed_by_keys(page: Browser) -> None:
    page.run("document.querySelector('svg [tabindex=\"0\"]').focus()")
    page.press("ArrowRight", 39)
    title = page.run("document.activeElement.querySelector('title').textContent")
    page.press("Enter", 13)
    assert page.run(NUMBER).split()[0] == title.split()[0]


def test_damaged_data_are_said_so_on_the_page(tab: Browser, many: Path, tmp_path: Path) -> None:
    text = many.read_text()
    (tmp_path / "cut.html").write_text(
        text.replace('id="data-contigs">H4s', 'id="data-contigs">XXX')
    )
    tab("Page.navigate", url=(tmp_path / "cut.html").as_uri())
    tab.until("document.getElementById('none')?.textContent.includes('cannot be read')")
    tab.run("new Promise(done => setTimeout(done, 200))")  # what is uncaught is told a moment later
    assert tab.said
    tab.said.clear()


def test_a_contig_opens_by_the_keyboard_and_closes_again(page: Browser) -> None:
    page.run("document.getElementById('contig-table').focus()")
    page.press("ArrowDown", 40)
    page.until("document.activeElement.closest('tr')?.dataset.index === '0'")
    page.press("ArrowDown", 40)
    page.until("document.activeElement.closest('tr')?.dataset.index === '1'")
    page.run("document.activeElement.click()")
    page.until("document.getElementById('contig').open")
    first = page.run("document.getElementById('contig-name').textContent")
    page.press("ArrowRight", 39)
    page.until(f"document.getElementById('contig-name').textContent !== {json.dumps(first)}")
    page.press("Escape", 27)
    page.until("!document.getElementById('contig').open")
    page.until("document.activeElement.closest('tr')?.dataset.index === '2'")


def test_a_name_from_the_input_is_text_and_its_contig_can_be_linked_to(page: Browser) -> None:
    address = page.run("document.querySelector('#table tbody a').href")
    page.click("#table tbody a")
    page.until("document.getElementById('contig').open")
    assert page.run("document.getElementById('contig-name').textContent") == EVIL
    assert page.run("document.getElementById('contig-sample').textContent") == "B/<b>%"
    page.run("document.getElementById('close').click()")
    page.until("!document.getElementById('contig').open")
    page.run(f"location.href = {json.dumps(address)}")
    page.until("document.getElementById('contig').open")
    assert not page.run("document.querySelectorAll('img, b > b').length")


def test_contigs_that_are_shown_are_saved_as_a_table(page: Browser, tmp_path: Path) -> None:
    page("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.click("[name=call][value=no_call] + span")
    page.click("#save")
    saved = tmp_path / "contigs.tsv"
    end = time.monotonic() + 20
    while not saved.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    head, *rows = (line.split("\t") for line in saved.read_text().splitlines())
    assert [dict(zip(head, row, strict=True))["contig"] for row in rows] == ["closed", "tiny"]
    assert rows[1][-1] == "too_short"


@pytest.mark.parametrize("rows", [[], [("a", 2, "too_short", None)]], ids=["none", "no call"])
def test_page_of_nothing_opens(tab: Browser, rows: list[Row], tmp_path: Path) -> None:
    write_report([classified(tmp_path / "out", rows)], tmp_path / "report.html")
    tab.open(tmp_path / "report.html")
    assert tab.run(NUMBER) == f"{len(rows)} of {len(rows)} contigs"
    assert tab.run(SHOWN) == [row[0] for row in rows]
    assert tab.said == []


def test_a_sample_that_is_cut_short_in_the_table_is_told_whole(page: Browser) -> None:
    assert page.run("document.querySelector('td.c-sample').title") == "B/<b>%"


def test_left_out_sample_stands_among_the_samples(page: Browser) -> None:
    rows = page.run(
        "[...document.querySelectorAll('#samples + div tbody tr')].map(row => row.innerText)"
    )
    assert [row.split()[0] for row in rows] == ["A", "broken", "B/<b>%"]
    assert "the file is empty" in rows[1]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(page: Browser, width: int) -> None:
    page(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=800,
        deviceScaleFactor=1,
        mobile=width < 400,
    )
    assert page.run("document.documentElement.scrollWidth") <= width
    lines = page.run("document.querySelector('#table tbody a').offsetHeight") > 24
    assert lines == (width < 400), "a phone has two lines for a name"
    page.run("document.querySelector('#table tbody a').click()")
    page.until("document.getElementById('contig').dataset.shown !== undefined")
    assert page.run("document.getElementById('contig-body').scrollWidth") <= width
    page("Emulation.clearDeviceMetricsOverride")


def test_the_view_of_a_contig_is_what_the_tables_say(tab: Browser, tmp_path: Path) -> None:
    """Windows lie where windows.tsv has them, and are viral by the same rule."""
    fasta = f">v1\n{OPEN}{STOPS}{OPEN}{OPEN[:20]}\n>stops\n{STOPS}\n"
    sample = Sample(tmp_path, fasta, lambda name: (1.0, 2.0 if "chunk_1" in name else 0.0))
    sample.classify(min_score=0.1)
    with (tmp_path / "out/regions.tsv").open("a") as handle:
        handle.write("v1\t30\t60\t30\t1\t0.5\tprovirus\n")
    write_report([tmp_path / "out"], tmp_path / "report.html")
    tab.open(tmp_path / "report.html", "#contig/out/v1")
    tab.until("document.getElementById('contig').dataset.shown !== undefined")
    says = tab.run("document.querySelector('.says').textContent")
    assert says == (
        "Virus: 1 of 3 scored windows is viral, on both strands; its score of 0.3333 reaches the "
        "threshold of 0.1."
    )
    shown = tab.run(
        "[...document.querySelectorAll('#contig-body details tbody tr')]"
        ".map(row => [...row.cells].slice(0, 3).map(cell => Number(cell.textContent)))"
    )
    table = [row for row in sample.rows("windows.tsv") if row["contig"] == "v1"]
    assert shown == [
        [int(row["window"]), int(row["start"]) + 1, int(row["end"])]
        for row in table
        if row["frames"] != "0"
    ]
    viral = tab.run("document.querySelectorAll('#contig-body details tr.virus').length")
    assert viral == sum(row["call"] == "virus" for row in table)
    assert "31–60 (1 window)" in tab.run("document.getElementById('contig-body').textContent")
    assert tab.run("document.querySelectorAll('.map .region').length") == 1
    frames = tab.run("document.querySelectorAll('.map rect:not(.lane, .region)').length")
    assert frames == 3 * 3 + sum(int(row["frames"]) for row in table)
    assert tab.said == []


def test_the_view_says_which_windows_were_read_by_runs(tab: Browser, tmp_path: Path) -> None:
    window, closed = f"{OPEN * 16}{OPEN[:20]}", f"{STOPS * 16}{STOPS[:20]}"
    contigs = {"most": window + 2 * closed, "one": window + closed, "all": 2 * closed, "it": closed}
    (tmp_path / "a.fa").write_text("".join(f">{name}\n{c}\n" for name, c in contigs.items()))
    vnp.predict(tmp_path / "a.fa", output=tmp_path / "out")
    said, run = {}, "longest run of codons"
    for name in contigs:
        tab("Page.navigate", url="about:blank")
        tab.open(tmp_path / "out/report.html", f"#contig/a/{name}")
        tab.until("document.getElementById('contig').dataset.shown !== undefined")
        said[name] = tab.run("document.querySelector('.says + p').textContent")
    assert said == {
        "most": f"1 of the windows has a stop-free frame; the other 2 were read by their {run}.",
        "one": f"1 of the windows has a stop-free frame; the other was read by its {run}.",
        "all": f"None of its windows has a stop-free frame; they were read by their {run}.",
        "it": f"Its window has no stop-free frame; it was read by its {run}.",
    }


def test_on_paper_the_table_has_its_first_hundred_and_an_open_contig_is_alone(
    page: Browser,
) -> None:
    page.run("dispatchEvent(new Event('beforeprint'))")
    page("Emulation.setEmulatedMedia", media="print")
    assert page.run("document.querySelectorAll('#paper tr').length") == 100
    assert page.run("document.getElementById('paper').checkVisibility()")
    assert not page.run("document.getElementById('tools').checkVisibility()")
    wide = page.run("['name', 'length'].map(c => document.querySelector('.c-' + c).offsetWidth)")
    assert wide[0] > 2 * wide[1], "a name has the room that numbers leave"
    assert "first 100 of these 3,001" in page.run("document.getElementById('printed').textContent")
    page("Emulation.setEmulatedMedia", media="")
    page.run("dispatchEvent(new Event('afterprint'))")
