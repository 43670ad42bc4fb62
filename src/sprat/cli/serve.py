"""sprat serve."""

from typing import Annotated, Literal

from cyclopts import Parameter

from sprat.cli.app import app
from sprat.cli.options import Code
from sprat.models.code import use_all
from sprat.serve.limits import Limits, check_port


@app.command
def serve(
    model: str | None = None,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    allowed_hosts: str = "",
    trusted_proxies: str = "",
    limits: Annotated[Limits, Parameter(name="*")] = Limits(),  # noqa: B008
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    threads: int = 0,
    code: Code = (),
) -> None:
    """Classify pictures over HTTP: a page for people, an interface for programs.

    Parameters
    ----------
    model
        A model.safetensors, the folder of a finished run, or the name of a pretrained model; by
        default the best pretrained one.
    host
        Address to listen on; 0.0.0.0 admits other machines, with --allowed-hosts.
    port
        Port to listen on; 0: a free one, which is printed.
    allowed_hosts
        Names by which requests may call this server, separated by commas, besides localhost; '*':
        any.
    trusted_proxies
        Addresses of your own proxies, separated by commas, whose X-Forwarded-For is believed.
    device
        Where the network runs; auto: the first available of cuda, mps, cpu.
    threads
        CPU threads of the network; 0: one per usable core.
    """
    from sprat.serve import require_packages

    require_packages()
    use_all(code)

    from sprat.runtime import check_threads, keep_freed_memory, set_threads
    from sprat.serve.origins import parse_hosts, parse_proxies
    from sprat.zoo import locate

    check_threads(threads)
    check_port(port)
    parse_hosts(allowed_hosts)
    parse_proxies(trusted_proxies)
    if model is not None:
        locate(model)

    from sprat.serve.server import run

    keep_freed_memory()
    set_threads(threads)
    run(model, host, port, limits, device, trusted_proxies, allowed_hosts)
