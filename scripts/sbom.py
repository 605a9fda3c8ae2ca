"""Cut a bill of materials of `make`'s environment down to what the image installs from its lock.

cyclonedx-py environment … | python scripts/sbom.py requirements-runtime.txt sbom.cdx.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def locked(path: Path) -> dict[str, str]:
    """Names and versions that a lock has for this platform."""
    lines = [line.rstrip("\\ ") for line in path.read_text().splitlines() if line[:1].isalnum()]
    wanted = [Requirement(line) for line in lines]
    return {
        canonicalize_name(one.name): next(iter(one.specifier)).version
        for one in wanted
        if one.marker is None or one.marker.evaluate()
    }


def main() -> None:
    bill, lock = json.load(sys.stdin), locked(Path(sys.argv[1]))
    kept = [part for part in bill["components"] if canonicalize_name(part["name"]) in lock]
    found = {canonicalize_name(part["name"]): part["version"] for part in kept}
    if found != lock:
        wrong = sorted(dict(found.items() ^ lock.items()))
        sys.exit(f".venv and {sys.argv[1]} differ in {', '.join(wrong)}: run 'make setup'")
    refs = {part["bom-ref"] for part in kept} | {"root-component"}
    graph = [node for node in bill["dependencies"] if node["ref"] in refs]
    for node in graph:
        node["dependsOn"] = [ref for ref in node.get("dependsOn", []) if ref in refs]
    cut = bill | {"components": kept, "dependencies": graph}
    Path(sys.argv[2]).write_text(json.dumps(cut, indent=1) + "\n")
    print(f"{sys.argv[2]}: {len(kept)} packages")


if __name__ == "__main__":
    main()
