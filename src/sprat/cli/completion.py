"""The option sprat --install-completion."""

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
            "The current shell is not bash, zsh, fish or powershell. Name the shell to install "
            "completion for: sprat --install-completion bash"
        ) from error
    print(f"Wrote {visible(path)}. Completion works in every shell that you start from now on.")
