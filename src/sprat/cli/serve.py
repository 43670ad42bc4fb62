"""The command sprat serve."""

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
    """Serve a model over HTTP, as a web page and an API that classify pictures.

    Parameters
    ----------
    model
        A model.safetensors, the folder of a finished run, or the name of a pretrained model; by
        default the most accurate pretrained model.
    host
        Address to listen on; 0.0.0.0 accepts other machines and needs --allowed-hosts.
    port
        Port to listen on; 0: choose a free one and print it.
    allowed_hosts
        Names that clients may use for this server, in addition to localhost, separated by commas;
        '*': any name.
    trusted_proxies
        Addresses of your own proxies, separated by commas, whose X-Forwarded-For to trust.
    device
        Device to run the network on; auto: the first available of cuda, mps, cpu.
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
