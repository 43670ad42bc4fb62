"""sprat --install-completion."""

from typing import Literal

from cyclopts.completion.detect import ShellDetectionError

from sprat.cli.app import app
from sprat.errors import SpratError
from sprat.text import visible


@app.command(name="--install-completion")
def install_completion(
    shell: Literal["bash", "zsh", "fish", "powershell"] | None = None, /
) -> None:
    """Install shell completion for commands and options.

    Parameters
    ----------
    shell
        Shell to install completion for; by default the current one.
    """
    try:
        path = app.install_completion(shell=shell)
    except ShellDetectionError as error:
        raise SpratError(
            "The shell that sprat is called from is not one of bash, zsh, fish and powershell. "
            "Name the shell to install completion for: sprat --install-completion bash."
        ) from error
    print(f"{visible(path)} completes sprat's commands in shells that are started from now on.")
