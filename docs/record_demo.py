"""Record the README's picture: run the demo, and draw what it prints as SVG into docs/demo.svg."""

from __future__ import annotations

import io
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from aegis.cli.demo import render, told
from aegis.config.settings import settings
from aegis.demo.files import default_directory
from aegis.demo.run import Plan, run

WIDTH = 92


def main() -> None:
    """Run the demo as `./run demo` does, and keep its lines."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    console.print(Text("$ ./run demo", style="bold"))
    plan = Plan(directory=default_directory(), most_files=300, archive=None, chaos=True, patience=300)
    began = time.monotonic()
    report = run(
        plan,
        settings(),
        tell=lambda line: console.print(told(time.monotonic() - began, line), no_wrap=True, overflow="ellipsis"),
        show=lambda *_: None,
    )
    render(console, plan, report, time.monotonic() - began)
    Path(__file__).with_name("demo.svg").write_text(console.export_svg(title="aegis demo"))


if __name__ == "__main__":
    main()
