"""``nima serve``: the model behind a real tritonserver on this machine, kept alive."""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
import threading
import time
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Annotated, Optional

import typer

from nima_build.cli._precision import Precision
from nima_client._os_errors import in_words
from nima_client._signals import TWICE_S
from nima_client.contract import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS


class Device(str, Enum):
    """Where the embedded server decodes and scores."""

    cpu = "cpu"
    cuda = "cuda"


# Markdown, so that the paragraphs of the help are filled.
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def serve(
    model_repository: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads it at run time on Python 3.10
        typer.Option(file_okay=False, help="Repository to serve; the project's own by default."),
    ] = None,
    grpc_port: Annotated[
        int, typer.Option(min=0, max=65535, help="gRPC port; 0 takes a free one.")
    ] = 8001,
    http_port: Annotated[
        int, typer.Option(min=0, max=65535, help="HTTP port; 0 takes a free one.")
    ] = 8000,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Metrics port; 0 takes a free one.")
    ] = 8002,
    http: Annotated[
        Optional[bool],  # noqa: UP045 - typer reads it at run time on Python 3.10
        typer.Option(
            "--http/--no-http",
            help="Open the HTTP endpoint; by default on loopback without TLS only.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(help="IPv4 address to listen on; anything but loopback is open to others."),
    ] = "127.0.0.1",
    device: Annotated[
        Device,
        typer.Option(help="cuda: on the GPU, after `nima build --target inductor`."),
    ] = Device.cpu,
    mps: Annotated[
        Optional[bool],  # noqa: UP045 - typer reads it at run time on Python 3.10
        typer.Option(
            "--mps/--no-mps",
            help="With --device cuda: share the GPU by NVIDIA MPS; by default where it can be had.",
            show_default=False,
        ),
    ] = None,
    instances: Annotated[
        int,
        typer.Option(min=0, help="Images worked on at once; 0 takes one a core, on a GPU a few."),
    ] = 0,
    precision: Annotated[
        Precision,
        typer.Option(help="int8: less CPU a photo, mean ratings moved by about 0.015."),
    ] = Precision.fp32,
    max_bytes: Annotated[
        int, typer.Option(min=1, help="Largest encoded image in bytes.")
    ] = DEFAULT_MAX_BYTES,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Largest image in pixels, checked before decoding.")
    ] = DEFAULT_MAX_PIXELS,
    log_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Keep tritonserver's log here."),
    ] = None,
    tls_cert: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="PEM certificate chain: encrypt gRPC (HTTP is then off)."),
    ] = None,
    tls_key: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="PEM private key of the certificate."),
    ] = None,
    tls_ca: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="PEM authority of the certificate, and of clients with --mutual-tls."),
    ] = None,
    tls_server_name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Name in the certificate, where it does not name HOST: the server's own probe "
            "connects to HOST and expects it."
        ),
    ] = None,
    mutual_tls: Annotated[
        bool,
        # Without its opposite, whose column would leave no room for the longest option's name.
        typer.Option("--mutual-tls", help="Ask clients for a certificate."),
    ] = False,
    admin_token: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            envvar="NIMA_ADMIN_TOKEN",
            help="Opens the repository, shared-memory, trace and logging APIs to whoever sends it "
            "in the header nima-admin; closed to everybody by default.",
        ),
    ] = None,
) -> None:
    """Serve the model with the embedded tritonserver until Ctrl-C or SIGTERM.

    Prints one endpoint a line once a real inference has answered. A dead or hung server or Python
    stub is restarted with backoff; what happens is told on standard error. SIGHUP puts the network
    that now lies in the repository in place of the one served, without a failed request; SIGUSR1
    goes back to the one before. Where standard input is a terminal, SIGHUP means that it was closed
    and stops the server: start it with `</dev/null` to reload it there.
    """
    from nima_build.metadata import ArtefactError
    from nima_build.repository import default_repository
    from nima_build.server import (
        EmbeddedServer,
        ServerError,
        ServerOptions,
        ServerTLS,
        Supervisor,
    )
    from nima_client.preprocess import Limits

    def report(line: str) -> None:
        # Who read it may be gone; that is no reason to stop serving.
        with contextlib.suppress(OSError):
            print(f"nima serve: {line}", file=sys.stderr, flush=True)

    tls_files = (tls_cert, tls_key, tls_ca)
    if any(tls_files) and not all(tls_files):
        raise typer.BadParameter("--tls-cert, --tls-key and --tls-ca go together")
    if (mutual_tls or tls_server_name) and not tls_cert:
        raise typer.BadParameter(
            "--mutual-tls and --tls-server-name need --tls-cert, --tls-key and --tls-ca"
        )
    try:
        options = ServerOptions(
            model_repository=model_repository,
            grpc_port=grpc_port,
            http_port=http_port,
            metrics_port=metrics_port,
            http=http,
            host=host,
            device=device.value,
            mps=mps,
            instances=instances or None,
            limits=Limits(max_bytes, max_pixels),
            precision=precision.value,
            log_file=log_file,
            tls=ServerTLS(tls_cert, tls_key, tls_ca, mutual_tls, tls_server_name)
            if tls_cert and tls_key and tls_ca
            else None,
            admin_token=admin_token,
        )
    except ServerError as error:
        report(str(error))
        raise typer.Exit(1) from None
    if not (options.on_loopback or options.tls):
        report(
            f"{host} is open to the network, without encryption and without accounts: "
            "SECURITY.md says what that means"
        )
    server = EmbeddedServer(options)
    supervisor = Supervisor(server, report=report)
    ended_by, ended_at, stopping = 0, time.monotonic(), False

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal ended_by, ended_at
        if stopping:
            # Somebody's second thoughts, and no other: a closed terminal may send SIGHUP twice.
            if number != signal.SIGINT or time.monotonic() - ended_at < TWICE_S:
                return
            ended_by = number
            raise KeyboardInterrupt
        ended_by, ended_at = number, time.monotonic()
        supervisor.stop()
        # A start may last a minute: unwind it rather than wait for its end.
        if starting or supervisor.launching:
            raise KeyboardInterrupt

    def change(number: int) -> None:
        try:
            if number == signal.SIGHUP:
                done = server.roll_out(model_repository or default_repository())
            else:
                done = server.roll_back()
        except (ServerError, ArtefactError) as error:
            report(str(error))
        except Exception as error:
            # Nobody else would say a word of what ends this thread.
            report(f"the version was not changed: {type(error).__name__}: {in_words(error)}")
        else:
            report(
                f"version {done.version} ({done.metadata.name}, checkpoint "
                f"{done.metadata.checkpoint_sha256[:12]}) in place of {done.previous} "
                f"after {done.seconds:.1f} s"
            )
            if done.remains:
                report(f"version {done.previous} still takes memory: {done.remains}")

    changes: queue.SimpleQueue[int] = queue.SimpleQueue()

    def make_changes() -> None:
        # While the server is being restarted, it could do none of it.
        while supervisor.wait_answering(signal.Signals(number := changes.get()).name):
            change(number)

    def on_change(number: int, _frame: FrameType | None) -> None:
        changes.put(number)

    starting = True
    # A terminal that is closed sends SIGHUP to what runs in it.
    in_terminal = sys.stdin is not None and sys.stdin.isatty()
    signal.signal(signal.SIGHUP, interrupt if in_terminal else on_change)
    signal.signal(signal.SIGUSR1, on_change)
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        report("starting tritonserver …")
        server.start()
        starting = False
        assert server.metadata is not None
        for folder in server.cleared:
            report(f"removed {folder}, which a killed server left")
        print(f"grpc {server.grpc_url}")
        if options.serves_http:
            print(f"http {server.http_url}")
        print(f"metrics {server.metrics_url}", flush=True)
        how = f", {server.mps.note}" if device is Device.cuda else ""
        report(
            f"serving {server.metadata.name} "
            f"(checkpoint {server.metadata.checkpoint_sha256[:12]}){how}; Ctrl-C stops"
        )
        # Beside the supervisor's loop, which goes on meanwhile.
        threading.Thread(target=make_changes, daemon=True).start()
        supervisor.run()
        why = " (SIGHUP, from the terminal; with </dev/null it reloads)"
        report(
            f"stopping{why if ended_by == signal.SIGHUP else ''}: requests in flight finish first; "
            "Ctrl-C does not wait for them"
        )
        stopping = True
        server.stop()
        stopping = False
    except (ServerError, ArtefactError, OSError) as error:
        report(in_words(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        cut = stopping
        stopping = False
        report(
            "stopped at once: requests in flight were cut off" if cut else "stopped while starting"
        )
        raise typer.Exit(128 + ended_by) from None
    finally:
        server.stop()
