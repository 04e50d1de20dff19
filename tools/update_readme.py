"""Put the present output of the commands into README.md: the example prediction and the table of commands."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
PLAN_NAME = "gpt-22b.plan.yaml"


def between(text: str, start: str, end: str, new: str) -> str:
    """Return `text` with what stands between two marks replaced."""
    first = text.index(start) + len(start)
    return text[:first] + new + text[text.index(end, first) :]


def plansim(folder: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user in `folder` would."""
    command = [sys.executable, "-m", "plansim.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def main() -> None:
    """Rewrite the README in place."""
    text = README.read_text(encoding="utf-8")
    plan = re.search(r"```yaml\n(# gpt-22b\.plan\.yaml\n.*?)```", text, re.DOTALL)
    if plan is None:
        sys.exit(f"README.md has no example plan that begins with # {PLAN_NAME}")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / PLAN_NAME).write_text(plan[1], encoding="utf-8")
        prediction = plansim(folder, "simulate", PLAN_NAME).stdout.rstrip()
        mistake = plansim(folder, "simulate", PLAN_NAME, "-o", "plan.parallel.tp=3").stderr.rstrip()
        listed = plansim(folder, "--help").stdout.split("Commands:\n")[1]
    rows = re.findall(r"^  (\S+)\s+(.*?)\.?$", listed, re.MULTILINE)
    text = between(text, "says what it will give:\n\n```\n", "\n```", prediction)
    text = between(text, "-o plan.parallel.tp=3\n", "\n```", mistake)
    table = "\n".join(f"| `{name}` | {what} |" for name, what in rows)
    text = between(text, "| command | does |\n| --- | --- |\n", "\n\n", table)
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
