"""`import virnucpro_core as vnp` in a notebook: bars, completion, a data frame."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from rlcompleter import Completer

import pytest

import virnucpro_core as vnp

STAND_INS = {
    "IPython/__init__.py": "",
    "IPython/display.py": """
def display(shown, **_): print('shown:', getattr(shown, 'text', 'a widget').replace('\\n', ' '))
""",
    "ipywidgets.py": """
class Output:
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def clear_output(self, wait): pass
    def close(self): pass
""",
}
"""As much of IPython and ipywidgets as Rich asks for; what is displayed is printed."""

NOTEBOOK = """
import builtins, sys
import IPython
class ZMQInteractiveShell: pass
builtins.get_ipython = ZMQInteractiveShell
import virnucpro_core as vnp
vnp.predict(sys.argv[1], progress=sys.argv[2] == "bars")
"""


@pytest.mark.parametrize("progress", ["bars", "none", "without ipywidgets"])
def test_predict_in_a_notebook_shows_a_bar_a_stage_where_it_can(
    progress: str, three: Path, tmp_path: Path
) -> None:
    if "without" in progress and importlib.util.find_spec("ipywidgets"):
        pytest.skip("ipywidgets is installed")
    for name, text in STAND_INS.items():
        if "without" not in progress or name != "ipywidgets.py":
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
    words = ["-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{NOTEBOOK}"]
    run = subprocess.run(
        [sys.executable, *words, three, progress.split()[0].replace("without", "bars")],
        capture_output=True,
        text=True,
        check=True,
    )
    shown = [line for line in run.stdout.splitlines() if line.startswith("shown: ")]
    if progress == "bars":
        assert shown.count("shown: a widget") == 6
        for stage in ("split", "translate", "embed", "merge", "classify", "report"):
            assert any(f"{stage} " in line and "━" in line for line in shown)
    else:
        assert not shown
        assert run.stdout == ""


def test_predict_in_jupyter_shows_bars_and_its_table_becomes_a_data_frame(three: Path) -> None:
    """The same in a real kernel, where Jupyter is installed."""
    for package in ("ipykernel", "ipywidgets", "pandas"):
        pytest.importorskip(package)
    client = pytest.importorskip("nbclient")
    written = pytest.importorskip("nbformat.v4")
    cells = [
        f"import virnucpro_core as vnp\ncalls = vnp.predict({str(three)!r})",
        "calls.to_pandas().call.tolist()",
    ]
    notebook = written.new_notebook(cells=[written.new_code_cell(cell) for cell in cells])
    client.NotebookClient(notebook, kernel_name="python3").execute()
    bars, frame = (cell.outputs for cell in notebook.cells)
    widgets = ["application/vnd.jupyter.widget-view+json" in one.data for one in bars]
    assert widgets == [True] * 6
    assert frame[0].data["text/plain"].startswith("['")


def test_tab_offers_the_public_names_alone() -> None:
    completer = Completer({"vnp": vnp})
    found = {match.partition(".")[2].rstrip("()") for match in completer.attr_matches("vnp.")}
    assert found == {name for name in vnp.__all__ if not name.startswith("_")}
    assert all(getattr(vnp, name) is not None for name in found)
